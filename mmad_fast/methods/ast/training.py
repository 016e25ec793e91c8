"""Training of AST on cached features: the teacher, then the student, which learns its answers.

The published schedule goes through the scans 72 times for each network at a constant learning rate;
the quick one takes smaller batches, larger steps that shrink to zero, and fewer passes. What both
give stands in docs/decisions.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.ast.detector import AstFeatures
from mmad_fast.methods.ast.networks import Student, Teacher, position_encoding

EPSILON = 1e-8
WEIGHT_DECAY = 1e-5
TrainingProgress = Callable[[str, int, int], None]
"""Called with the network's name, steps done, steps in all."""


class ScanFeatures(Protocol):
    """The features of scans: a list of them, or a FeatureStore."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> AstFeatures: ...


@dataclass(frozen=True)
class Schedule:
    """How both networks are trained.

    Attributes:
        epochs: Passes over the training scans, of each network.
        batch_scans: Scans per step; what is left of a pass is left out, as published.
        learning_rate: Of Adam, at the start.
        is_cosine: The learning rate falls to zero over all steps; else it is constant.
        uses_bfloat16: The student's convolutions are computed in it where the processor can.
    """

    epochs: int
    batch_scans: int
    learning_rate: float
    is_cosine: bool
    uses_bfloat16: bool


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        # Source: method facts 9.2 (3 x 24 epochs, Adam 2e-4, batches of 8).
        "published": Schedule(
            epochs=72, batch_scans=8, learning_rate=2e-4, is_cosine=False, uses_bfloat16=False
        ),
        "quick": Schedule(
            epochs=24, batch_scans=2, learning_rate=1e-3, is_cosine=True, uses_bfloat16=True
        ),
    }
)


def train_teacher(
    teacher: Teacher,
    scans: ScanFeatures,
    schedule: Schedule,
    *,
    seed: int,
    progress: TrainingProgress | None = None,
) -> list[float]:
    """The mean loss of each pass; the teacher is trained in place.

    Raises:
        MmadFastError: the loss became NaN or infinite.
    """

    def loss(features: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
        z, logarithm = teacher(features, positions)
        return teacher_loss(z, logarithm, weights)

    return _train(teacher, loss, scans, schedule, "teacher", seed, progress)


def train_student(
    student: Student,
    teacher: Teacher,
    scans: ScanFeatures,
    schedule: Schedule,
    *,
    seed: int,
    progress: TrainingProgress | None = None,
) -> list[float]:
    """The mean loss of each pass; the student is trained in place on the teacher's answers.

    Raises:
        MmadFastError: the loss became NaN or infinite.
    """

    def loss(features: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
        with torch.no_grad():
            target, _ = teacher(features, positions)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            predicted = student(features, positions)
        return student_loss(predicted.float(), target, weights)

    in_bfloat16 = schedule.uses_bfloat16 and has_bfloat16()
    return _train(student, loss, scans, schedule, "student", seed, progress)


def teacher_loss(z: Tensor, logarithm: Tensor, weights: Tensor) -> Tensor:
    """() negative log-likelihood up to a constant, mean over the pixels, from z (B, C, M, M), the
    Jacobian's logarithm (B, M, M) and the foreground's weights (B, M, M)."""
    return (0.5 * (weights[:, None] * z.square()).sum(1) - weights * logarithm).mean()


def student_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """() squared difference of two (B, C, M, M), weighted by the foreground (B, M, M); mean."""
    return (weights[:, None] * (predicted - target).square()).mean()


@torch.inference_mode()
def held_out_loss(teacher: Teacher, student: Student, scans: ScanFeatures) -> float:
    """The student's mean loss on scans, in evaluation mode."""
    losses = []
    for index in range(len(scans)):
        features, weights = _batch([scans[index]])
        positions = _positions(features)
        target, _ = teacher(features, positions)
        losses.append(student_loss(student(features, positions), target, weights).item())
    return float(np.mean(losses))


def has_bfloat16() -> bool:
    """The processor multiplies in bfloat16, which else takes longer than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _train(
    network: nn.Module,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    scans: ScanFeatures,
    schedule: Schedule,
    name: str,
    seed: int,
    progress: TrainingProgress | None,
) -> list[float]:
    optimizer = torch.optim.Adam(
        network.parameters(), lr=schedule.learning_rate, eps=EPSILON, weight_decay=WEIGHT_DECAY
    )
    batch_scans = min(schedule.batch_scans, len(scans))
    num_steps = schedule.epochs * (len(scans) // batch_scans)
    rng = np.random.default_rng(seed)
    network.train()
    _to_channels_last(network)
    losses: list[float] = []
    done = 0
    for _ in range(schedule.epochs):
        of_pass = []
        for batch in _batches(len(scans), batch_scans, rng):
            features, weights = _batch([scans[index] for index in batch])
            positions = _positions(features)
            loss = loss_of(features, weights, positions)
            if not torch.isfinite(loss):
                raise MmadFastError(
                    f"the training loss of the {name} became {loss.item()} at learning rate "
                    f"{schedule.learning_rate:g}; lower learning_rate, or check the features"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if schedule.is_cosine:
                share = 0.5 * (1 + math.cos(math.pi * done / num_steps))
                optimizer.param_groups[0]["lr"] = schedule.learning_rate * share
            optimizer.step()
            of_pass.append(loss.item())
            done += 1
            if progress is not None:
                progress(name, done, num_steps)
        losses.append(float(np.mean(of_pass)))
    network.eval()
    return losses


def _to_channels_last(network: nn.Module) -> None:
    """Weights in the order in which convolutions are fastest, in place."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _batches(num_scans: int, batch_scans: int, rng: np.random.Generator) -> Iterator[list[int]]:
    order = rng.permutation(num_scans).tolist()
    for start in range(0, num_scans - batch_scans + 1, batch_scans):
        yield order[start : start + batch_scans]


def _batch(scans: list[AstFeatures]) -> tuple[Tensor, Tensor]:
    """(features (B, C, M, M), weights (B, M, M))."""
    features = torch.from_numpy(np.stack([scan.features for scan in scans]))
    weights = torch.from_numpy(np.stack([scan.weights for scan in scans]))
    return features.to(memory_format=torch.channels_last), weights


def _positions(features: Tensor) -> Tensor:
    """(B, 32, M, M) of features (B, C, M, M)."""
    positions = position_encoding(features.shape[-1]).expand(len(features), -1, -1, -1)
    return positions.contiguous(memory_format=torch.channels_last)
