"""The published AST pipeline in plain torch: dense, slow, obvious. The truth that the detector is
compared with, and the baseline of its speed. Imports nothing from the fast code.

Read `reference_infer` from top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor, nn

from mmad_fast.artifact import Artifact
from mmad_fast.errors import EmptyScanError
from mmad_fast.methods.ast.networks import (
    Student,
    Teacher,
    build_networks,
    position_encoding,
)
from mmad_fast.methods.ast.options import (
    PERMUTATIONS,
    STUDENT_PREFIX,
    TEACHER_PREFIX,
    AstOptions,
)
from mmad_fast.methods.branches.cnn_pyramid import network as cnn_pyramid
from mmad_fast.methods.family import Reference
from mmad_fast.methods.fit_request import Weights
from mmad_fast.methods.network_tensors import load_tensors
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

DEPTH_BLOCK = 8
DILATION = 8


@dataclass(frozen=True)
class ReferenceNetworks:
    """The networks of the pipeline, in evaluation mode.

    Attributes:
        rgb: (1, 3, R, R) image -> one feature map (1, C, M, M); None without RGB.
        teacher: The normalising flow.
        student: What learned its answers.
    """

    rgb: nn.Module | None
    teacher: Teacher
    student: Student

    @classmethod
    def of_tensors(
        cls, rgb: nn.Module | None, tensors: Mapping[str, NDArray], options: AstOptions
    ) -> ReferenceNetworks:
        """The networks of an artifact: its tensors, and the backbone with the same weights."""
        teacher, student = build_networks(
            options.channels,
            teacher_channels=options.teacher_channels,
            student_channels=options.student_channels,
            student_blocks=options.student_blocks,
            permutations=tensors[PERMUTATIONS],
        )
        load_tensors(teacher, tensors, TEACHER_PREFIX)
        load_tensors(student, tensors, STUDENT_PREFIX)
        return cls(rgb if rgb is None else rgb.eval(), teacher.eval(), student.eval())


@dataclass(frozen=True)
class ReferenceScores:
    """What the reference says of one scan.

    Attributes:
        difference: (M, M) mean squared difference of both networks, as it is.
        anomaly_map: (S, S).
        image_score: Its maximum, or the mean difference.
    """

    difference: NDArray
    anomaly_map: NDArray
    image_score: float


@torch.inference_mode()
def reference_infer(
    prepared: PreparedScan,
    networks: ReferenceNetworks,
    options: AstOptions,
    clock: StageClock | None = None,
) -> ReferenceScores:
    """The anomaly map and score of a prepared scan by the published pipeline.

    Args:
        prepared: The scan, with its depth picture.
        networks: Backbone, teacher and student.
        options: What the detector was fitted with.
        clock: Gets the time of each stage if given.

    Raises:
        EmptyScanError: no foreground, where the published code gives NaN.

    Source: AST section 3; method facts 9.2.
    """
    clock = StageClock() if clock is None else clock
    depth = prepared.depth
    assert depth is not None
    if not depth.foreground.any():
        raise EmptyScanError(f"scan {prepared.name!r} has no foreground")
    parts: list[Tensor] = []
    if networks.rgb is not None:
        with clock.stage("rgb_maps"):
            (features,) = networks.rgb(torch.from_numpy(prepared.rgb)[None])
            parts.append(features)  # (1, 304, M, M)
    with clock.stage("depth"):
        if options.reads_depth:
            values = torch.from_numpy(depth.values)[None, None]
            parts.append(F.pixel_unshuffle(values, DEPTH_BLOCK))  # (1, 64, M, M)
        weights = foreground_weights(depth.foreground)  # (1, 1, M, M)
    with clock.stage("networks"):
        joined = torch.cat(parts, dim=1)  # (1, C, M, M)
        positions = position_encoding(joined.shape[-1])[None]
        target, _ = networks.teacher(joined, positions)
        predicted = networks.student(joined, positions)
    with clock.stage("scoring"):
        squared = (target - predicted).square()
        per_pixel = (weights * squared).mean(dim=1)  # (1, M, M)
        mean = per_pixel.mean()
        weighted = (per_pixel * weights[:, 0])[:, None]  # the weight once more, as published
        upsampled = F.interpolate(
            weighted, scale_factor=DEPTH_BLOCK, mode="bicubic", align_corners=False
        )
    score = upsampled.max() if options.image_score == "max" else mean
    return ReferenceScores(squared.mean(dim=1)[0].numpy(), upsampled[0, 0].numpy(), float(score))


def foreground_weights(foreground: NDArray[np.bool_]) -> Tensor:
    """(1, 1, M, M) of the foreground (S, S): dilated, resized bilinearly."""
    dilated = binary_dilation(foreground, np.ones((DILATION, DILATION)))
    side = len(foreground) // DEPTH_BLOCK
    image = torch.from_numpy(dilated.astype(np.float32))[None, None]
    return F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)


def reference_pipeline(artifact: Artifact, weights: Weights) -> Reference:
    """The published pipeline with the options and weights of an artifact.

    Args:
        artifact: An AST artifact.
        weights: What it was fitted with, by branch.

    Raises:
        WeightsError: the weights cannot be had or do not fit.
    """
    options = AstOptions.from_manifest(artifact.manifest.parameters)
    rgb = None
    if options.reads_rgb:
        seed = int(artifact.manifest.weights["seed"])
        rgb = cnn_pyramid.build_network(options, weights=weights.get("rgb", "auto"), seed=seed)
    networks = ReferenceNetworks.of_tensors(rgb, artifact.tensors(), options)

    def infer(
        prepared: PreparedScan, clock: StageClock, *, ties: Literal["lowest", "any"] = "lowest"
    ) -> ReferenceScores:
        return reference_infer(prepared, networks, options, clock)

    return infer
