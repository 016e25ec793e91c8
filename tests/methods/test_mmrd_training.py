"""The fit half of MMRD and its kin on small networks: the teacher's statistics, and the students'
training on stored maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.errors import EmptyScanError, MmadFastError
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.mmrd.detector import MmrdFeatures, split_levels
from mmad_fast.methods.mmrd.fit import initial_student
from mmad_fast.methods.mmrd.options import MmrdOptions
from mmad_fast.methods.mmrd.student import Comparison, MmrdStudent, Student
from mmad_fast.methods.mmrd.teacher_statistics import BATCH_SCANS, Statistics, estimate_statistics
from mmad_fast.methods.mmrd.training import (
    held_out_loss,
    map_statistics,
    read_batch,
    train_students,
    training_schedule,
)

CPU = torch.device("cpu")
SHAPES = ((4, 4, 4), (6, 2, 2), (8, 1, 1))
Pictures = dict[str, NDArray[np.float32]]


class SmallTeacher(nn.Module):
    """Two convolutions with BatchNorm, the second of which sees what the first one gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)

    def forward(self, image: Tensor) -> Tensor:
        shallow = torch.relu(self.bn1(self.conv1(image)))
        deep: Tensor = self.bn2(self.conv2(shallow))
        return deep


@pytest.fixture
def teacher() -> SmallTeacher:
    torch.manual_seed(0)
    network = SmallTeacher()
    for norm in (network.bn1, network.bn2):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor, std=0.5)
    return network.eval()


def pictures_of(index: int) -> Pictures:
    rng = np.random.default_rng(index)
    rgb, depth = rng.normal(0, 1, (2, 1, 3, 9, 9)).astype(np.float32)
    return {"rgb": rgb, "aux": 3 * depth + 2}


def estimated(network: nn.Module, num_scans: int, **chosen: int) -> dict[str, Statistics]:
    arguments = {"passes": 2, "seed": 0, **chosen}
    return estimate_statistics(
        network, num_scans, pictures_of, progress=lambda done, total: None, **arguments
    )


def test_statistics_are_those_of_what_each_layer_sees(teacher: SmallTeacher) -> None:
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    found = estimated(teacher, 5)
    assert list(found) == ["rgb", "aux"]
    for name, statistics in found.items():
        images = torch.from_numpy(np.concatenate([pictures_of(i)[name] for i in range(5)]))
        layer = teacher.conv1(images).detach()
        for norm, following in (("bn1", teacher.conv2), ("bn2", None)):
            mean, variance = layer.mean((0, 2, 3)), layer.var((0, 2, 3))
            np.testing.assert_allclose(statistics[f"{norm}.running_mean"], mean, atol=1e-5)
            np.testing.assert_allclose(statistics[f"{norm}.running_var"], variance, rtol=1e-4)
            if following is not None:
                normed = (layer - mean[:, None, None]) / layer.var(
                    (0, 2, 3), unbiased=False, keepdim=True
                ).add(1e-5).sqrt()[0]
                affine = (
                    normed * teacher.bn1.weight[:, None, None] + teacher.bn1.bias[:, None, None]
                )
                layer = following(torch.relu(affine)).detach()
    assert not teacher.training
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])


def test_statistics_follow_from_the_seed_and_every_pass_counts(teacher: SmallTeacher) -> None:
    num_scans = BATCH_SCANS + 5

    def mean(**chosen: int) -> NDArray[np.float32]:
        return estimated(teacher, num_scans, **chosen)["rgb"]["bn2.running_mean"]

    np.testing.assert_array_equal(mean(), mean())
    assert not np.array_equal(mean(), mean(seed=1))
    assert not np.array_equal(mean(), mean(passes=3))
    np.testing.assert_allclose(mean(), mean(passes=3), atol=0.02)


def test_scans_without_a_point_do_not_count_and_progress_is_told(teacher: SmallTeacher) -> None:
    told: list[tuple[int, int]] = []

    def some(index: int) -> Pictures:
        if index != 1:
            raise EmptyScanError("nothing")
        return pictures_of(index)

    def nothing(index: int) -> Pictures:
        raise EmptyScanError("nothing")

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    found = estimate_statistics(teacher, 3, some, passes=2, seed=0, progress=tell)
    assert told == [(3, 6), (6, 6)]
    images = torch.from_numpy(pictures_of(1)["rgb"])
    mean = teacher.conv1(images).mean((0, 2, 3)).detach()
    np.testing.assert_allclose(found["rgb"]["bn1.running_mean"], mean, atol=1e-5)
    with pytest.raises(EmptyScanError, match="none of the 3 training scans has a measured point"):
        estimate_statistics(teacher, 3, nothing, passes=1, seed=0, progress=tell)


class SmallStudent(Student):
    """Restores each level of each modality from one of them; the deepest one is a single place, on
    which BatchNorm has one value per scan."""

    def __init__(self, read_level: int) -> None:
        super().__init__()
        self.read_level = read_level
        channels = [shape[0] for shape in SHAPES]
        self.bottleneck = nn.Sequential(nn.Conv2d(channels[read_level], 16, 1), nn.BatchNorm2d(16))
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(16, channel, 1) for channel in channels) for _ in range(2)
        )

    def forward(self, levels: list[list[Tensor]]) -> list[Comparison]:
        comparisons = []
        for maps, heads in zip(levels, self.heads, strict=True):
            code = self.bottleneck(maps[self.read_level])
            restored = tuple(
                nn.functional.interpolate(head(code), size=one.shape[2:])
                for head, one in zip(heads, maps, strict=True)
            )
            comparisons.append(Comparison(tuple(maps), restored))
        return comparisons


class SmallOptions(MmrdOptions):
    """Options of a teacher with small maps."""

    level_shapes = SHAPES


def small_options(**chosen: object) -> MmrdOptions:
    values = {"epochs": 30, "batch_scans": 4, "learning_rate": 0.01, **chosen}
    return SmallOptions(**values)  # type: ignore[arg-type]


def features(seed: int, *, offset: float = 0.0) -> MmrdFeatures:
    """The same at each place but for noise and what is added to every second channel; each scan
    has a scale of its own."""
    rng = np.random.default_rng(seed)
    parts = []
    for channels, height, width in SHAPES:
        pattern = np.sin(np.arange(channels)) + offset * (np.arange(channels) % 2)
        parts.append(np.repeat(pattern, height * width))
    row = np.concatenate(parts) * rng.uniform(0.5, 2)
    rows = np.stack([row, -row]) + rng.normal(0, 0.1, (2, len(row)))
    return MmrdFeatures(rows.astype(np.float16), None)


SCANS = [features(seed) for seed in range(9)]


def trained(
    scans: list[MmrdFeatures], *, read_level: int = 0, **chosen: object
) -> tuple[SmallStudent, list[float]]:
    torch.manual_seed(0)
    student = SmallStudent(read_level)
    options = small_options(**chosen)
    return student, train_students(student, scans, options, seed=0, device=CPU)


def test_a_batch_is_the_detectors_maps_one_after_the_other() -> None:
    (levels,) = read_batch(SCANS[:3], small_options(), CPU)
    assert [[tuple(one.shape[1:]) for one in maps] for maps in levels] == [list(SHAPES)] * 2
    for modality, maps in enumerate(levels):
        for scan, own in enumerate(SCANS[:3]):
            wanted = split_levels(own.levels[modality].astype(np.float32), SHAPES)
            for found, one in zip(maps, wanted, strict=True):
                assert found.dtype == torch.float32
                np.testing.assert_array_equal(found[scan], one[0])


def test_students_learn_what_is_normal() -> None:
    student, losses = trained(SCANS)
    assert losses[-1] < 0.3 * losses[0]
    options = small_options()
    good = held_out_loss(student, [features(20), features(21)], options, CPU)
    assert good == pytest.approx(losses[-1], rel=0.3)
    assert held_out_loss(student, [features(20, offset=1.0)], options, CPU) > 2 * good
    assert not student.training


@pytest.mark.parametrize(("num_scans", "batch_scans"), [(1, 4), (2, 4), (5, 4), (3, 1)])
def test_few_scans_are_trained_on_whatever_the_batch(num_scans: int, batch_scans: int) -> None:
    _, losses = trained(SCANS[:num_scans], read_level=2, epochs=3, batch_scans=batch_scans)
    assert len(losses) == 3
    assert np.isfinite(losses).all()


def test_divergence_is_an_error_that_says_what_to_do() -> None:
    broken = replace(SCANS[0], levels=np.full_like(SCANS[0].levels, np.nan))
    with pytest.raises(MmadFastError, match=r"loss of the student became nan .* lower learning_ra"):
        trained([broken, *SCANS[1:]])


def test_bfloat16_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for has_bfloat16 in (False, True):
        monkeypatch.setattr(
            "mmad_fast.methods.mmrd.training.has_bfloat16", lambda _, has=has_bfloat16: has
        )
        student, _ = trained(SCANS)
        losses.append(held_out_loss(student, SCANS, small_options(), CPU))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("mmrd", (400, 16, 1e-3, (0.9, 0.999), 1.0)),
        ("mmrd-rgb", (400, 16, 1e-3, (0.9, 0.999), 1.0)),
        ("rd", (200, 16, 5e-3, (0.5, 0.999), 1.0)),
        ("trd", (200, 16, 5e-3, (0.5, 0.999), 0.95)),
    ],
)
def test_the_published_schedule_is_the_published_one(
    method: str, expected: tuple[int, int, float, tuple[float, float], float]
) -> None:
    request = FitRequest.of(method, schedule="published")
    found = training_schedule(resolve_options(request), 24)
    assert expected == (
        found.epochs, found.batch_scans, found.learning_rate, found.betas, found.decay
    )  # fmt: skip
    assert not found.is_cosine
    assert not found.drops_rest
    assert not found.uses_bfloat16


def test_what_is_asked_for_is_in_the_schedule() -> None:
    request = FitRequest.of("mmrd", epochs=3, learning_rate=0.5, batch_scans=2)
    found = training_schedule(resolve_options(request), 24)
    assert (found.epochs, found.learning_rate, found.batch_scans) == (3, 0.5, 2)
    assert found.is_cosine
    assert found.uses_bfloat16


def test_a_vision_transformers_quick_schedule_takes_smaller_steps() -> None:
    request = FitRequest.of("mmrd", rgb_backbone="dinov2-vits14")
    found = training_schedule(resolve_options(request), 24)
    assert (found.epochs, found.learning_rate, found.batch_scans) == (40, 2e-3, 2)


def test_the_quick_schedule_makes_more_passes_over_few_scans() -> None:
    options = resolve_options(FitRequest.of("mmrd"))
    for num_scans, epochs in ((244, 40), (24, 40), (5, 120), (1, 240)):
        assert training_schedule(options, num_scans).epochs == epochs


def test_map_statistics_are_those_of_all_pixels_of_all_unsmoothed_maps() -> None:
    student, _ = trained(SCANS, epochs=2)
    options = small_options()
    means, stds = map_statistics(student, SCANS[:3], options, CPU)
    size = (options.grid_size, options.grid_size)
    for modality in range(2):
        maps = []
        for scan in SCANS[:3]:
            (levels,) = read_batch([scan], options, CPU)
            with torch.no_grad():
                targets, restored = student(levels)[modality]
            distances = [
                1 - nn.functional.cosine_similarity(a, b)[None]
                for a, b in zip(targets, restored, strict=True)
            ]
            maps.append(
                torch.stack(
                    [
                        nn.functional.interpolate(one, size, mode="bilinear", align_corners=True)
                        for one in distances
                    ]
                ).sum(0)
            )
        pixels = torch.stack(maps).double()
        assert means[modality] == pytest.approx(float(pixels.mean()), rel=1e-5)
        assert stds[modality] == pytest.approx(float(pixels.std(unbiased=False)), rel=1e-4)


class ReverseShapes(MmrdOptions):
    """Options of a teacher whose maps halve from level to level, as the students need."""

    level_shapes = ((4, 8, 8), (6, 4, 4), (8, 2, 2))


@pytest.mark.parametrize("prototype_init", ["samples", "normal"])
def test_prototypes_begin_as_places_of_training_scans(prototype_init: str) -> None:
    options = ReverseShapes(
        prototypes=(5, 5, 5),
        student_width=0.125,
        prototype_init=prototype_init,  # type: ignore[arg-type]
    )
    size = sum(int(np.prod(shape)) for shape in options.level_shapes)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 2, size)).astype(np.float16)
    scans: Any = [MmrdFeatures(row, None) for row in rows]
    student = initial_student(options, 7, scans)
    assert isinstance(student, MmrdStudent)
    (levels,) = read_batch(scans, options, CPU)
    for of_modality, maps in zip(student.prototypes, levels, strict=True):
        for prototypes, features in zip(of_modality, maps, strict=True):
            places = features.movedim(1, -1).flatten(0, 2)
            distances = torch.cdist(prototypes.rows.detach(), places).amin(dim=1)
            assert bool((distances < 1e-5).all()) == (prototype_init == "samples")
    again, other = (initial_student(options, seed, scans).state_dict() for seed in (7, 8))
    first = student.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["prototypes.0.0.rows"], other["prototypes.0.0.rows"])


def test_maps_of_one_constant_have_no_statistics() -> None:
    blank = replace(SCANS[0], levels=np.zeros_like(SCANS[0].levels))
    student, _ = trained(SCANS, epochs=1)
    with pytest.raises(MmadFastError, match="one constant"):
        map_statistics(student, [blank], small_options(), CPU)
