"""Training of AST on cached features: the teacher, then the student, which learns its answers.

The published schedule goes through the scans 72 times for each network at a constant learning rate;
the quick one takes smaller batches, larger steps that shrink to zero, and fewer passes. What both
give stands in docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from mmad_fast.methods.ast.detector import AstFeatures
from mmad_fast.methods.ast.networks import Student, Teacher, position_encoding
from mmad_fast.methods.feature_store import ScanFeatures
from mmad_fast.methods.network_training import (
    Schedule,
    TrainingProgress,
    has_bfloat16,
    train_network,
)
from mmad_fast.methods.training_checkpoint import TrainingCheckpoint

SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        # Source: method facts 9.2 (3 x 24 epochs, Adam 2e-4, batches of 8).
        "published": Schedule(
            epochs=72, batch_scans=8, learning_rate=2e-4, weight_decay=1e-5, drops_rest=True
        ),
        # The student's convolutions alone are in bfloat16.
        "quick": Schedule(
            epochs=24,
            batch_scans=2,
            learning_rate=1e-3,
            is_cosine=True,
            weight_decay=1e-5,
            drops_rest=True,
            uses_bfloat16=True,
        ),
    }
)


def train_teacher(
    teacher: Teacher,
    scans: ScanFeatures[AstFeatures],
    schedule: Schedule,
    *,
    seed: int,
    progress: TrainingProgress | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> list[float]:
    """The mean loss of each pass; the teacher is trained in place.

    Raises:
        InvalidInputError: the checkpoint is of another network.
        MmadFastError: the loss became NaN or infinite, or the checkpoint cannot be written.
    """

    def loss(features: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
        z, logarithm = teacher(features, positions)
        return teacher_loss(z, logarithm, weights)

    return _train(teacher, loss, scans, schedule, "teacher", seed, progress, checkpoint)


def train_student(
    student: Student,
    teacher: Teacher,
    scans: ScanFeatures[AstFeatures],
    schedule: Schedule,
    *,
    seed: int,
    progress: TrainingProgress | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> list[float]:
    """The mean loss of each pass; the student is trained in place on the teacher's answers.

    Raises:
        InvalidInputError: the checkpoint is of another network.
        MmadFastError: the loss became NaN or infinite, or the checkpoint cannot be written.
    """

    def loss(features: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
        with torch.no_grad():
            target, _ = teacher(features, positions)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            predicted = student(features, positions)
        return student_loss(predicted.float(), target, weights)

    in_bfloat16 = schedule.uses_bfloat16 and has_bfloat16()
    return _train(student, loss, scans, schedule, "student", seed, progress, checkpoint)


def teacher_loss(z: Tensor, logarithm: Tensor, weights: Tensor) -> Tensor:
    """() negative log-likelihood up to a constant, mean over the pixels, from z (B, C, M, M), the
    Jacobian's logarithm (B, M, M) and the foreground's weights (B, M, M)."""
    return (0.5 * (weights[:, None] * z.square()).sum(1) - weights * logarithm).mean()


def student_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """() squared difference of two (B, C, M, M), weighted by the foreground (B, M, M); mean."""
    return (weights[:, None] * (predicted - target).square()).mean()


@torch.inference_mode()
def held_out_loss(teacher: Teacher, student: Student, scans: ScanFeatures[AstFeatures]) -> float:
    """The student's mean loss on scans, in evaluation mode."""
    losses = []
    for index in range(len(scans)):
        features, weights = _batch([scans[index]])
        positions = _positions(features)
        target, _ = teacher(features, positions)
        losses.append(student_loss(student(features, positions), target, weights).item())
    return float(np.mean(losses))


def _train(
    network: nn.Module,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    scans: ScanFeatures[AstFeatures],
    schedule: Schedule,
    name: str,
    seed: int,
    progress: TrainingProgress | None,
    checkpoint: TrainingCheckpoint | None,
) -> list[float]:
    def loss_of_batch(batch: Sequence[int]) -> Tensor:
        features, weights = _batch([scans[index] for index in batch])
        return loss_of(features, weights, _positions(features))

    return train_network(
        network,
        loss_of_batch,
        len(scans),
        schedule,
        name=name,
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
    )


def _batch(scans: list[AstFeatures]) -> tuple[Tensor, Tensor]:
    """(features (B, C, M, M), weights (B, M, M))."""
    features = torch.from_numpy(np.stack([scan.features for scan in scans]))
    weights = torch.from_numpy(np.stack([scan.weights for scan in scans]))
    return features.to(memory_format=torch.channels_last), weights


def _positions(features: Tensor) -> Tensor:
    """(B, 32, M, M) of features (B, C, M, M)."""
    positions = position_encoding(features.shape[-1]).expand(len(features), -1, -1, -1)
    return positions.contiguous(memory_format=torch.channels_last)
