"""Training of teacher and student on features: they learn, what is seen and what stops it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.ast.detector import AstFeatures
from mmad_fast.methods.ast.networks import Student, Teacher, build_networks
from mmad_fast.methods.ast.training import (
    SCHEDULES,
    held_out_loss,
    student_loss,
    teacher_loss,
    train_student,
    train_teacher,
)

SIDE, CHANNELS = 6, 4
SHORT = replace(
    SCHEDULES["quick"], epochs=15, batch_scans=4, learning_rate=1e-2, uses_bfloat16=False
)


def make_features(seed: int, *, offset: float = 0.0) -> AstFeatures:
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(SIDE) + rng.normal(0, 0.1))
    maps = np.stack([np.outer(wave, wave) * scale for scale in (1.0, 0.5, 2.0, 0.1)])
    maps += rng.normal(0, 0.05, maps.shape) + offset
    weights = np.zeros((SIDE, SIDE), np.float32)
    weights[1:5, 1:5] = 1
    return AstFeatures(maps.astype(np.float32), weights)


SCANS = [make_features(seed) for seed in range(9)]


def new_networks() -> tuple[Teacher, Student]:
    torch.manual_seed(0)
    return build_networks(CHANNELS, teacher_channels=8, student_channels=8, student_blocks=1)


def test_both_learn_and_anomalies_stand_out() -> None:
    teacher, student = new_networks()
    losses = train_teacher(teacher, SCANS, SHORT, seed=0)
    assert len(losses) == SHORT.epochs
    assert losses[-1] < losses[0] - 1
    before = held_out_loss(teacher, student.eval(), [make_features(20)])
    losses = train_student(student, teacher, SCANS, SHORT, seed=0)
    assert losses[-1] < 0.5 * losses[0]
    good = held_out_loss(teacher, student, [make_features(20)])
    assert good < 0.5 * before
    assert held_out_loss(teacher, student, [make_features(20, offset=1.0)]) > 3 * good
    assert not teacher.training
    assert not student.training


def test_the_same_seed_gives_the_same_networks() -> None:
    first, second = (
        train_teacher(new_networks()[0], SCANS, replace(SHORT, epochs=2), seed=3) for _ in range(2)
    )
    assert first == second
    assert first != train_teacher(new_networks()[0], SCANS, replace(SHORT, epochs=2), seed=4)


def test_losses_are_the_published_formulas() -> None:
    rng = np.random.default_rng(0)
    z, other = (torch.from_numpy(rng.normal(size=(2, 3, 2, 2))) for _ in range(2))
    logarithm = torch.from_numpy(rng.normal(size=(2, 2, 2)))
    weights = torch.from_numpy(rng.random((2, 2, 2)))
    flow, difference = 0.0, 0.0
    for scan in range(2):
        for row in range(2):
            for column in range(2):
                weight = float(weights[scan, row, column])
                values = z[scan, :, row, column].tolist()
                others = other[scan, :, row, column].tolist()
                flow += 0.5 * sum(weight * v * v for v in values)
                flow -= weight * float(logarithm[scan, row, column])
                pairs = zip(values, others, strict=True)
                difference += sum(weight * (v - o) ** 2 for v, o in pairs) / 3
    assert float(teacher_loss(z, logarithm, weights)) == pytest.approx(flow / 8, rel=1e-9)
    assert float(student_loss(z, other, weights)) == pytest.approx(difference / 8, rel=1e-9)


@pytest.mark.parametrize(("num_scans", "steps"), [(1, 2), (3, 2), (9, 4)])
def test_what_is_left_of_a_pass_is_left_out_but_few_scans_are_one_batch(
    num_scans: int, steps: int
) -> None:
    seen: list[tuple[str, int, int]] = []
    teacher, student = new_networks()
    schedule = replace(SHORT, epochs=2)
    train_teacher(
        teacher, SCANS[:num_scans], schedule, seed=0, progress=lambda *told: seen.append(told)
    )
    assert seen == [("teacher", step, steps) for step in range(steps + 1)]
    losses = train_student(student, teacher, SCANS[:num_scans], schedule, seed=0)
    assert np.isfinite(losses).all()


def test_divergence_is_an_error_that_says_what_to_do() -> None:
    schedule = replace(SHORT, learning_rate=1e30)
    with pytest.raises(MmadFastError, match=r"loss of the teacher became .* lower learning_rate"):
        train_teacher(new_networks()[0], SCANS, schedule, seed=0)
    teacher, student = new_networks()
    with pytest.raises(MmadFastError, match=r"loss of the student became .* lower learning_rate"):
        train_student(student, teacher, SCANS, schedule, seed=0)


def test_bfloat16_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmad_fast.methods.ast.training.has_bfloat16", lambda: True)
    losses = []
    for uses_bfloat16 in (False, True):
        teacher, student = new_networks()
        train_teacher(teacher, SCANS, SHORT, seed=0)
        schedule = replace(SHORT, uses_bfloat16=uses_bfloat16)
        train_student(student, teacher, SCANS, schedule, seed=0)
        losses.append(held_out_loss(teacher, student, SCANS))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


def test_the_published_schedule_is_the_published_one() -> None:
    published = SCHEDULES["published"]
    assert (published.epochs, published.batch_scans, published.learning_rate) == (72, 8, 2e-4)
    assert (published.weight_decay, published.drops_rest) == (1e-5, True)
    assert not published.is_cosine
    assert not published.uses_bfloat16
