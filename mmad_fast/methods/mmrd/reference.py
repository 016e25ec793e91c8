"""The published pipelines of MMRD, TRD, RD4AD and forward distillation in plain torch: dense, slow,
obvious. The truth that the detector is compared with, and the baseline of its speed. Imports
nothing from the fast code.

Read `reference_infer` from top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from mmad_fast.artifact import Artifact
from mmad_fast.errors import EmptyScanError
from mmad_fast.methods.branches.feature_levels import network as feature_levels
from mmad_fast.methods.family import Reference
from mmad_fast.methods.fit_request import Weights
from mmad_fast.methods.mmrd.options import STATISTICS_PREFIX, STUDENT_PREFIX, MmrdOptions
from mmad_fast.methods.mmrd.student import build_student
from mmad_fast.methods.network_tensors import load_tensors
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class ReferenceNetworks:
    """The networks of the pipeline, in evaluation mode.

    Attributes:
        teachers: Per modality image (1, 3, R, R) -> three maps (1, C, H, W), shallow to deep: the
            same weights, with BatchNorm statistics of the modality.
        student: Teacher's maps by modality -> comparisons of targets and restored maps.
    """

    teachers: Sequence[nn.Module]
    student: nn.Module

    @classmethod
    def of_tensors(
        cls, teacher: nn.Module, tensors: Mapping[str, NDArray], options: MmrdOptions
    ) -> ReferenceNetworks:
        """The networks of an artifact: its tensors, and the teacher with the same weights."""
        student = build_student(options)
        load_tensors(student, tensors, STUDENT_PREFIX)
        teachers = []
        for modality in options.modality_names:
            prefix = f"{STATISTICS_PREFIX}{modality}."
            statistics = {
                key.removeprefix(prefix): values
                for key, values in tensors.items()
                if key.startswith(prefix)
            }
            teachers.append(feature_levels.with_statistics(teacher, statistics).eval())
        return cls(teachers, student.eval())


@dataclass(frozen=True)
class ReferenceScores:
    """What the reference says of one scan.

    Attributes:
        anomaly_map: (S, S).
        image_score: Its maximum.
    """

    anomaly_map: NDArray
    image_score: float


@torch.inference_mode()
def reference_infer(
    prepared: PreparedScan,
    networks: ReferenceNetworks,
    options: MmrdOptions,
    clock: StageClock | None = None,
) -> ReferenceScores:
    """The anomaly map and score of a prepared scan by the published pipeline.

    Args:
        prepared: The scan, with the pictures of its geometry.
        networks: Teachers and students.
        options: What the detector was fitted with.
        clock: Gets the time of each stage if given.

    Raises:
        EmptyScanError: nothing was measured.

    Source: MMRD, equations 1 to 10; method facts 8.1 to 8.3.
    """
    clock = StageClock() if clock is None else clock
    if not len(prepared.points):
        raise EmptyScanError(f"scan {prepared.name!r} has no points")
    pictures = [] if options.modalities == "aux" else [torch.from_numpy(prepared.rgb)]
    if options.modalities != "rgb":
        assert prepared.auxiliary is not None
        pictures += [torch.from_numpy(one) for one in prepared.auxiliary]
    with clock.stage("teacher"):
        images = [picture[None] for picture in pictures]
        levels = [
            teacher(image) for teacher, image in zip(networks.teachers, images, strict=True)
        ]  # [modality][level] (1, C, H, W)
    with clock.stage("student"):
        if options.distillation == "forward":
            comparisons = networks.student(levels, images)
        else:
            comparisons = networks.student(levels)
    with clock.stage("scoring"):
        maps = [
            distance_map(targets, restored, size=options.grid_size)
            for targets, restored in comparisons
        ]
        if options.distillation == "trd":
            scales = zip(maps, options.map_means, options.map_stds, strict=True)
            maps = [(one - mean) / std for one, mean, std in scales]
        anomaly_map = gaussian_filter(torch.stack(maps).sum(0).numpy(), options.smoothing_sigma)
    return ReferenceScores(anomaly_map, float(anomaly_map.max()))


def distance_map(targets: Sequence[Tensor], restored: Sequence[Tensor], *, size: int) -> Tensor:
    """(S, S): the cosine distances of the maps (1, C, H, W) of all levels, interpolated and
    added."""
    total = torch.zeros(size, size)
    for target, one in zip(targets, restored, strict=True):
        distance = 1 - F.cosine_similarity(target, one, dim=1)  # (1, H, W)
        upsampled = F.interpolate(
            distance[None], size=(size, size), mode="bilinear", align_corners=True
        )
        total += upsampled[0, 0]
    return total


def reference_pipeline(artifact: Artifact, weights: Weights) -> Reference:
    """The published pipeline with the options and weights of an artifact.

    Args:
        artifact: An artifact of this family.
        weights: What it was fitted with, by branch.

    Raises:
        ArtifactError: its BatchNorm statistics are not those of the teacher.
        WeightsError: the weights cannot be had or do not fit.
    """
    options = MmrdOptions.from_manifest(artifact.manifest.parameters)
    seed = int(artifact.manifest.weights["seed"])
    teacher = feature_levels.build_network(options, weights=weights.get("rgb", "auto"), seed=seed)
    networks = ReferenceNetworks.of_tensors(teacher, artifact.tensors(), options)

    def infer(
        prepared: PreparedScan, clock: StageClock, *, ties: Literal["lowest", "any"] = "lowest"
    ) -> ReferenceScores:
        return reference_infer(prepared, networks, options, clock)

    return infer
