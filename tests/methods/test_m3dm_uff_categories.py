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
from mmad_fast.methods.fitting import FitRequest
from mmad_fast.methods.m3dm.networks import load_uff, read_training_facts
from mmad_fast.methods.m3dm.uff_categories import train_for_categories, train_shared_uff

CATEGORIES = ("biscuit", "foam_pad")
REQUEST = FitRequest(
    method="m3dm",
    rgb_backbone="dinov2-vits14",
    rgb_weights="random",
    point_weights="random",
    rgb_layers=1,
    point_layers=(0,),
    num_groups=64,
    group_size=16,
    shots=2,
    options={"point_patches": "28x28"},
)
RGB_ONLY: dict[str, Any] = {
    **{"method": "m3dm-rgb", "options": {}},
    **{"point_layers": None, "num_groups": None, "group_size": None},
}


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
        updates=2,
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
        "mmad_fast.methods.m3dm.uff_categories.train_shared_uff",
        lambda *arguments, **options: calls.append(arguments),
    )
    request = train_for_categories(dataset, CATEGORIES, REQUEST, tmp_path, None)
    path = tmp_path / "uff.safetensors"
    assert calls == [(dataset, CATEGORIES, REQUEST, path)]
    assert request.options == {"point_patches": "28x28", "uff": str(path)}
    assert replace(request, options=REQUEST.options) == REQUEST
    for other in (
        replace(REQUEST, **RGB_ONLY),
        replace(REQUEST, method="m3dm-rgb+3d"),
        replace(REQUEST, options={"uff": "none"}),
        replace(REQUEST, options={"uff": "other.safetensors"}),
    ):
        assert train_for_categories(dataset, CATEGORIES, other, tmp_path, None) is other
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: replace(r, **RGB_ONLY), "m3dm-rgb has no fusion bank"),
        (lambda r: replace(r, shots=4), "shots is 4, but category 'biscuit' has 3"),
        (lambda r: replace(r, options={"uff_pairing": "wrong"}), "pairing is 'wrong'"),
    ],
)
def test_requests_that_cannot_be_trained_are_refused_at_once(
    dataset: Dataset, tmp_path: Path, change: Callable[[FitRequest], FitRequest], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        train_shared_uff(dataset, CATEGORIES, change(REQUEST), tmp_path / "x.safetensors")
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
