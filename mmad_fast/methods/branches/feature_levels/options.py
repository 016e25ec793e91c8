"""Options of the branch; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from mmad_fast.backbones.table import CNN_BACKBONES, RGB_BACKBONES, get_cnn_spec, get_rgb_spec
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.branches.branch import GraphOptions
from mmad_fast.methods.options import MAX_SIDE, constant, option

NUM_LEVELS = 3
"""Feature maps of a teacher, shallow to deep."""

IMAGE_SIZE = 256
"""R of a wide ResNet; that of a vision transformer stands in its record. Source: method facts
8.1 and 8.2."""

RESNET_LEVELS = (1, 2, 3)
"""Layers of a wide ResNet that are read. Source: method facts 8.1."""

TRANSFORMER_LEVELS = (3, 6, 9)
"""Blocks of a vision transformer that are read; ours."""

LAYERED_NETWORKS = tuple(name for name, spec in CNN_BACKBONES.items() if spec.part == "layer")

Options = TypeVar("Options", bound="FeatureLevelOptions")


@dataclass(frozen=True)
class FeatureLevelOptions(GraphOptions):
    """Which frozen network is the teacher, and which of its feature maps are read.

    Attributes:
        rgb_backbone: Name in mmad_fast.backbones: a wide ResNet as published, or a vision
            transformer.
        rgb_levels: Numbers of the layers, or of the blocks, whose maps are read; 1-based,
            ascending. None: those of the backbone.

    Raises:
        InvalidInputError: the network has no such levels, or not at this size of the image.
    """

    rgb_backbone: str = option(
        "wide-resnet50-2", "Frozen network of the teacher; the vision transformers are ours.",
        choices=(*LAYERED_NETWORKS, *RGB_BACKBONES), in_rows=True,
    )  # fmt: skip
    rgb_levels: tuple[int, ...] | None = option(
        None,
        "Its maps, shallow to deep; default: layers 1,2,3 of a wide ResNet, blocks 3,6,9 of a "
        "vision transformer.",
        minimum=1,
        in_rows=True,
    )
    rgb_size: int = constant(IMAGE_SIZE, minimum=1, maximum=MAX_SIDE)
    grid_size: int = constant(IMAGE_SIZE, minimum=1, maximum=MAX_SIDE)

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = self.levels
        if len(levels) != NUM_LEVELS or list(levels) != sorted(set(levels)):
            raise InvalidInputError(
                f"rgb_levels is {levels}; it must be {NUM_LEVELS} different numbers, shallow to "
                "deep"
            )
        if not self.is_transformer:
            get_cnn_spec(self.rgb_backbone).check_outputs(levels, self.rgb_size)
            return
        spec = get_rgb_spec(self.rgb_backbone)
        if levels[-1] > spec.depth:
            raise InvalidInputError(f"rgb_levels is {levels}; {spec.name} has {spec.depth} blocks")

    @property
    def is_transformer(self) -> bool:
        """The teacher is a vision transformer."""
        return self.rgb_backbone in RGB_BACKBONES

    @property
    def levels(self) -> tuple[int, ...]:
        """The numbers of the layers or blocks that are read."""
        own = TRANSFORMER_LEVELS if self.is_transformer else RESNET_LEVELS
        return own if self.rgb_levels is None else self.rgb_levels

    @property
    def level_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of each level, shallow to deep."""
        if self.is_transformer:
            spec = get_rgb_spec(self.rgb_backbone)
            side = self.rgb_size // spec.patch_size
            return ((spec.dim, side, side),) * NUM_LEVELS
        resnet = get_cnn_spec(self.rgb_backbone)
        return tuple(resnet.map_shape(level, self.rgb_size) for level in self.levels)

    def with_constants(self: Options) -> Options:
        """With the levels and the size of the image that are the backbone's own."""
        options = super().with_constants()
        size = (
            get_rgb_spec(options.rgb_backbone).image_size if options.is_transformer else IMAGE_SIZE
        )
        return replace(options, rgb_levels=options.levels, rgb_size=size)


def level_name(level: int, prefix: str = "level") -> str:
    """What a level, 0-based, is called in a graph: "level_1"."""
    return f"{prefix}_{level + 1}"
