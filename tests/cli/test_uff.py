"""`mmad-fast uff`: what it asks the training for, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch", reason="training needs torch")

from mmad_fast.cli import app
from mmad_fast.data.synthetic import write_synthetic
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.m3dm import uff_categories
from mmad_fast.methods.m3dm.contrastive_loss import AlignmentAccuracy
from mmad_fast.methods.m3dm.uff_training import UffRecipe, UffRecord


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"num_train": 1, "num_validation": 0, "num_good": 0, "num_per_defect": 0, "size": 64}
    folder = tmp_path_factory.mktemp("data") / "set"
    return write_synthetic(folder, categories=("biscuit", "foam_pad"), **sizes)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the training is called with; it returns a made-up result."""
    seen: list[tuple[Any, ...]] = []

    def train(dataset: Any, categories: Any, request: Any, output: Any, **options: Any) -> Any:
        seen.append((categories, request, output, options["updates"]))
        recipe = UffRecipe(updates=options["updates"])
        record = UffRecord(recipe, recipe.plan(2), 2, (9.0, 8.0))
        before = AlignmentAccuracy(0.001, 0.02, 0.004, 100, 2)
        after = AlignmentAccuracy(0.234, 0.531, 0.004, 100, 2)
        return uff_categories.SharedUff(output, record, before, after, "validation")

    monkeypatch.setattr(uff_categories, "train_shared_uff", train)
    return seen


def test_the_training_gets_what_was_asked_for(
    data: Path, tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    output = tmp_path / "uff.safetensors"
    arguments = ["uff", data, "-o", output, "--updates", 7, "--num-groups", 784, "--seed", 3]
    arguments += ["--set", "uff_pairing=published_dump", "--point-layers", "1,2", "--json"]
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    ((categories, request, path, updates),) = calls
    assert (categories, path, updates) == (("biscuit", "foam_pad"), output, 7)
    assert (request.method, request.num_groups, request.seed) == ("m3dm", 784, 3)
    assert request.point_layers == (1, 2)
    assert request.options == {"uff_pairing": "published_dump"}
    report = json.loads(done.stdout)
    assert report["categories"] == ["biscuit", "foam_pad"]
    assert report["uff"]["alignment_after"]["same_token"] == 0.234
    assert report["uff"]["training"]["updates"] == 7


def test_a_table_shows_the_alignment(
    data: Path, tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    arguments = ["uff", data, "-o", tmp_path / "uff.safetensors", "--category", "biscuit"]
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert calls[0][0] == ("biscuit",)
    for words in ("2 validation scans after 120 updates", "0.10 %", "23.40 %", "53.10 %"):
        assert words in done.stdout
    assert "--set uff=" in done.stderr


def test_a_method_without_a_fusion_bank_is_refused(data: Path, tmp_path: Path) -> None:
    arguments = ["uff", data, "-o", tmp_path / "uff.safetensors", "--method", "m3dm-rgb"]
    with pytest.raises(InvalidInputError, match="m3dm-rgb has no fusion bank.*m3dm-fusion"):
        CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert not list(tmp_path.iterdir())
