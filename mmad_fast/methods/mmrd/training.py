"""Training of the students on the teacher's stored maps, and what is measured of them.

The teacher is frozen, so that its maps are computed once; they are read as float16. What the quick
schedule takes from the published one, and what both reach, stands in docs/decisions.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.feature_store import ScanFeatures
from mmad_fast.methods.mmrd.detector import MmrdFeatures
from mmad_fast.methods.mmrd.options import MmrdOptions
from mmad_fast.methods.mmrd.student import Student
from mmad_fast.methods.network_training import (
    Schedule,
    TrainingProgress,
    has_bfloat16,
    train_network,
)
from mmad_fast.methods.training_checkpoint import TrainingCheckpoint
from mmad_fast.ops.cosine_maps import cosine_maps

_RD_BETAS = (0.5, 0.999)

# Source: MMRD's paper, "Implemental Details"; method facts 8.1 and 8.3. Of
# TRD's two optimizers, one per student, each parameter has its own moments in ours, too: the
# students share no parameter and their losses are added, so that the steps are the same.
PUBLISHED: Mapping[str, Schedule] = MappingProxyType(
    {
        "mmrd": Schedule(epochs=400, batch_scans=16, learning_rate=1e-3),
        "rd": Schedule(epochs=200, batch_scans=16, learning_rate=5e-3, betas=_RD_BETAS),
        # On MVTec 3D-AD; on Eyecandies 100 passes.
        "trd": Schedule(
            epochs=200, batch_scans=16, learning_rate=5e-3, betas=_RD_BETAS, decay=0.95
        ),
        # The paper trains what it compares with alike.
        "forward": Schedule(epochs=400, batch_scans=16, learning_rate=1e-3),
    }
)
QUICK = Schedule(epochs=40, batch_scans=4, learning_rate=5e-3, is_cosine=True, uses_bfloat16=True)
QUICK_TRANSFORMER = replace(QUICK, batch_scans=2, learning_rate=2e-3)
"""With a vision transformer as the teacher; ours."""
QUICK_STEPS = 240
"""Of the quick schedule at least: of few scans it makes more passes."""


def training_schedule(options: MmrdOptions, num_scans: int) -> Schedule:
    """The training's part of the options, on so many scans."""
    is_quick = options.schedule == "quick"
    quick = QUICK_TRANSFORMER if options.is_transformer else QUICK
    schedule = quick if is_quick else PUBLISHED[options.distillation]
    schedule = replace(
        schedule,
        learning_rate=options.learning_rate or schedule.learning_rate,
        batch_scans=options.batch_scans or schedule.batch_scans,
    )
    least = math.ceil(QUICK_STEPS / schedule.steps_per_pass(num_scans)) if is_quick else 0
    return replace(schedule, epochs=options.epochs or max(schedule.epochs, least))


def train_students(
    student: Student,
    scans: ScanFeatures[MmrdFeatures],
    options: MmrdOptions,
    *,
    seed: int,
    device: torch.device,
    progress: TrainingProgress | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> list[float]:
    """The mean loss of each pass; the networks, on the device, are trained in place.

    Raises:
        InvalidInputError: the checkpoint is of another network.
        MmadFastError: the loss became NaN or infinite, or the checkpoint cannot be written.
    """
    schedule = training_schedule(options, len(scans))
    in_bfloat16 = schedule.uses_bfloat16 and has_bfloat16(device)

    def loss_of(batch: Sequence[int]) -> Tensor:
        # BatchNorm has no variance of one value, which a small map of one scan may be; that of a
        # scan and itself is 0, and no mean changes.
        chosen = [*batch, *batch] if len(batch) == 1 else batch
        inputs = read_batch([scans[index] for index in chosen], options, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
            return student.loss(*inputs)

    return train_network(
        student,
        loss_of,
        len(scans),
        schedule,
        name="student",
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
    )


@torch.inference_mode()
def held_out_loss(
    student: Student, scans: ScanFeatures[MmrdFeatures], options: MmrdOptions, device: torch.device
) -> float:
    """The mean loss of the distillation, without that of the priors, in evaluation mode."""
    losses = []
    for index in range(len(scans)):
        inputs = read_batch([scans[index]], options, device)
        losses.append(student.distillation_loss(*inputs).item())
    return float(np.mean(losses))


@torch.inference_mode()
def map_statistics(
    student: Student, scans: ScanFeatures[MmrdFeatures], options: MmrdOptions, device: torch.device
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(means, deviations) per comparison of the unsmoothed map over all pixels of all scans.

    Raises:
        MmadFastError: a map has the same value at all of them.

    Source: method facts 8.3.
    """
    sums: dict[int, list[tuple[float, float]]] = {}
    for index in range(len(scans)):
        inputs = read_batch([scans[index]], options, device)
        for number, (targets, restored) in enumerate(student(*inputs)):
            found = cosine_maps(
                [one[0].float().cpu().contiguous().numpy() for one in targets],
                [one[0].float().cpu().contiguous().numpy() for one in restored],
                size=options.grid_size,
                sigma=0.0,
            ).astype(np.float64)
            sums.setdefault(number, []).append((found.mean(), np.square(found).mean()))
    moments = [np.mean(sums[number], axis=0) for number in sorted(sums)]
    means = tuple(float(mean) for mean, _ in moments)
    variances = [float(square - mean**2) for mean, square in moments]
    if min(variances) <= 0:
        raise MmadFastError(
            "the anomaly map of every held-out scan is one constant, which no z-score can be taken "
            "by; check that the held-out scans show the part, and that they are not all the same "
            "blank picture"
        )
    return means, tuple(map(math.sqrt, variances))


def read_batch(
    scans: Sequence[MmrdFeatures], options: MmrdOptions, device: torch.device
) -> tuple[Any, ...]:
    """The students' arguments: levels[modality][level] (B, C, H, W) float32, and the modalities'
    pictures (B, 3, R, R) where they read them."""
    rows = torch.from_numpy(np.stack([scan.levels for scan in scans])).to(device)  # (B, M, D)
    sizes = [math.prod(shape) for shape in options.level_shapes]
    levels = [
        [
            _as_images(flat.reshape(len(scans), *shape))
            for flat, shape in zip(row.split(sizes, dim=1), options.level_shapes, strict=True)
        ]
        for row in rows.unbind(1)
    ]
    if not options.reads_pictures:
        return (levels,)
    stacked = np.stack([scan.pictures for scan in scans if scan.pictures is not None])
    pictures = torch.from_numpy(stacked).to(device).unbind(1)
    return levels, tuple(map(_as_images, pictures))


def _as_images(maps: Tensor) -> Tensor:
    """As float32, in the order in which convolutions are fastest."""
    return maps.to(torch.float32, memory_format=torch.channels_last)
