"""Options of AST. Both halves read them; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from mmad_fast.methods.branches.cnn_pyramid.options import CnnPyramidOptions
from mmad_fast.methods.options import MAX_SIDE, constant, option

GRAPH = "difference"
"""Graph of teacher and student."""

PERMUTATIONS = "permutations"
"""Tensor of the order of the channels before each of the teacher's blocks."""

TEACHER_PREFIX, STUDENT_PREFIX = "teacher.", "student."
"""Of the tensors that hold the networks, under their published keys."""

DEPTH_BLOCK = 8
"""Side of the square of depth pixels that one place of the networks' grid has as channels."""

NOT_READ_SIZE = 32
"""Side of the RGB image where nothing reads it: as small as the backbone's stride allows."""

Options = TypeVar("Options", bound="AstOptions")


@dataclass(frozen=True)
class AstOptions(CnnPyramidOptions):
    """What an AST detector is fitted with.

    Attributes:
        image_score: The largest value of the map, as reported, or the mean difference.
        precision: Of the networks: AST has one.
        student_channels, student_blocks, teacher_channels: Sizes of the networks.
        schedule: "quick", or "published", which takes many times as long.
        epochs: Passes over the training scans, of each network.
        learning_rate: Of Adam, at the start.
        reads_rgb, reads_depth: What the networks get.
    """

    rgb_backbone: Literal["efficientnet-b5"] = option(
        "efficientnet-b5", "Convolutional network of the RGB features.", in_rows=True
    )
    rgb_outputs: tuple[int, ...] = constant((35,), minimum=0)
    precision: Literal["fp32"] = option(
        "fp32", "Of the networks' products; lower ones are exported.", in_rows=True,
        earlier_names={"float32": "fp32"},
    )  # fmt: skip
    image_score: Literal["max", "mean"] = option(
        "max", "Of the map as reported, or the mean difference of both networks.", in_rows=True
    )
    student_channels: int = option(
        1024, "Width of the student; published: 1024.", minimum=1, maximum=4096, in_rows=True
    )
    student_blocks: int = option(
        4, "Residual blocks of the student; published: 4.", minimum=0, maximum=64, in_rows=True
    )
    teacher_channels: int = option(
        64, "Width of the teacher's convolutions; published: 64.",
        minimum=1, maximum=1024, in_rows=True,
    )  # fmt: skip
    schedule: Literal["quick", "published"] = option(
        "quick", "Schedule of both networks; the published one takes many times as long.",
        fit_only=True, in_rows=True,
    )  # fmt: skip
    epochs: int | None = option(
        None, "Passes over the training scans of each network; default: the schedule's.",
        minimum=1, fit_only=True, in_rows=True,
    )  # fmt: skip
    learning_rate: float | None = option(
        None, "Of Adam, at the start; default: the schedule's.", above=0, fit_only=True
    )
    grid_size: int = constant(192, minimum=DEPTH_BLOCK, maximum=MAX_SIDE)
    reads_rgb: bool = constant(True)
    reads_depth: bool = constant(True)

    @property
    def is_exact(self) -> bool:
        """The detector is of the published size and gives the published pipeline's answer, up to
        rounding."""
        published = (1024, 4, 64)
        sizes = (self.student_channels, self.student_blocks, self.teacher_channels)
        return super().is_exact and sizes == published

    @property
    def score_is_map_maximum(self) -> bool:
        """The image score is the largest value of the anomaly map."""
        return self.image_score == "max"

    @property
    def map_side(self) -> int:
        """M, side of the networks' grid."""
        return self.grid_size // DEPTH_BLOCK

    @property
    def channels(self) -> int:
        """C of the networks' input: RGB features, then the depth pixels of each place."""
        rgb = self.map_shapes[0][0] if self.reads_rgb else 0
        return rgb + (DEPTH_BLOCK**2 if self.reads_depth else 0)

    def with_constants(self: Options) -> Options:
        """With the sizes of image and map, which follow from the backbone also without it."""
        options = super().with_constants()
        return replace(
            options,
            grid_size=options.map_shapes[0][1] * DEPTH_BLOCK,
            rgb_size=options.rgb_size if options.reads_rgb else NOT_READ_SIZE,
        )
