"""One feature fusion for several categories: trained, written, and passed on to the fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mmad_fast.data import Dataset, open_dataset
from mmad_fast.data.synthetic import write_synthetic
from mmad_fast.errors import DataError, InvalidInputError
from mmad_fast.measure import benchmark
from mmad_fast.measure.benchmark import run_benchmark
from mmad_fast.measure.detector_row import MeasureRequest
from mmad_fast.methods.fit_request import FitRequest
from mmad_fast.methods.m3dm.networks import load_uff, read_training_facts
from mmad_fast.methods.m3dm.shared_fusion import train_shared_uff

CATEGORIES = ("biscuit", "foam_pad")
REQUEST = FitRequest.of(
    "m3dm",
    rgb_backbone="dinov2-vits14",
    rgb_weights="random",
    point_weights="random",
    rgb_layers=1,
    point_layers=(0,),
    num_groups=64,
    group_size=16,
    point_patches="28x28",
    uff_updates=2,
    shots=2,
)
RGB_ONLY = FitRequest.of(
    "m3dm-rgb", rgb_backbone="dinov2-vits14", rgb_weights="random", rgb_layers=1, shots=2
)


def asking(**options: Any) -> FitRequest:
    """REQUEST with other options; None takes one back."""
    changed = {**REQUEST.options, **options}
    return replace(REQUEST, options={n: value for n, value in changed.items() if value is not None})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "set"
    return open_dataset(
        write_synthetic(
            folder,
            categories=CATEGORIES,
            num_train=3,
            num_validation=1,
            num_good=0,
            num_per_defect=0,
            size=96,
        )
    )


def test_one_network_of_all_categories_is_written(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "new" / "uff.safetensors"
    stages = []
    trained = train_shared_uff(
        dataset,
        CATEGORIES,
        REQUEST,
        path,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert trained.record.num_scans == 4  # shots=2 of two categories
    assert trained.record.plan.updates == 2
    assert trained.measured_on == "validation"
    assert trained.before.num_scans == trained.after.num_scans == 2
    assert trained.before != trained.after
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == [
        "export",
        "features",
        "fusion training",
    ]
    assert stages[-1] == ("fusion training", 2, 2)
    network = load_uff(path, point_channels=384, rgb_channels=384)
    assert not network.training
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["mmad_fast"])
    assert facts["categories"] == list(CATEGORIES)
    assert facts["training"]["updates"] == 2
    assert read_training_facts(path) == trained.record.to_dict()
    assert facts["weights"]["rgb"]["kind"] == "random"
    assert str(tmp_path) not in json.dumps(facts)


def test_the_fits_of_a_benchmark_get_its_path(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(
        "mmad_fast.methods.m3dm.shared_fusion.train_shared_uff",
        lambda *arguments, **options: calls.append(arguments[1:]),
    )

    class FitBeganError(Exception):
        pass

    def fit_detector(*_: Any, request: FitRequest, **__: Any) -> None:
        raise FitBeganError(request)

    def request_of_the_fits(request: FitRequest) -> FitRequest:
        with pytest.raises(FitBeganError) as began:
            run_benchmark(dataset.root, CATEGORIES, request, MeasureRequest(), output=tmp_path)
        (found,) = began.value.args
        return found

    monkeypatch.setattr(benchmark, "fit_detector", fit_detector)
    found = request_of_the_fits(REQUEST)
    path = tmp_path / "shared-2shot" / "uff.safetensors"
    assert calls == [(CATEGORIES, REQUEST, path)]
    assert found == asking(uff=str(path))
    for other in (
        RGB_ONLY,
        replace(asking(uff_updates=None), method="m3dm-rgb+3d"),
        asking(uff="none", uff_updates=None),
        asking(uff="other.safetensors"),
    ):
        assert request_of_the_fits(other) == other
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RGB_ONLY, "m3dm-rgb has no fusion bank, and so no UFF to train; choose m3dm or"),
        (lambda: replace(REQUEST, shots=4), "shots is 4, but category 'biscuit' has 3"),
        (lambda: asking(uff_pairing="wrong"), "pairing is 'wrong'"),
        (lambda: asking(uff="none", uff_updates=None), "uff is 'none', so that there is none"),
        (lambda: asking(uff="a.safetensors"), "uff is 'a.safetensors', .*; leave it out"),
    ],
)
def test_requests_that_cannot_be_trained_are_refused_at_once(
    dataset: Dataset, tmp_path: Path, make: Callable[[], FitRequest], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        train_shared_uff(dataset, CATEGORIES, make(), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_other_endings_and_categories_without_training_scans_are_refused(
    dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r"x\.pth: weights are written as \.safetensors"):
        train_shared_uff(dataset, CATEGORIES, REQUEST, tmp_path / "x.pth")
    (tmp_path / "set" / "part" / "test" / "good" / "rgb").mkdir(parents=True)
    (tmp_path / "set" / "part" / "test" / "good" / "xyz").mkdir(parents=True)
    with pytest.raises(DataError):
        train_shared_uff(
            open_dataset(tmp_path / "set"), ("part",), REQUEST, tmp_path / "x.safetensors"
        )
