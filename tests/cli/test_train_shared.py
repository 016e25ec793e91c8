"""`mmad-fast train-shared`: what it asks the training for, and what it prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("torch", reason="training needs torch")

from mmad_fast.cli import app
from mmad_fast.data.synthetic import write_synthetic
from mmad_fast.errors import InvalidInputError, MmadFastError
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.m3dm import shared_fusion
from mmad_fast.methods.m3dm.contrastive_loss import AlignmentAccuracy
from mmad_fast.methods.m3dm.uff_training import UffRecipe, UffRecord


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"num_train": 1, "num_validation": 0, "num_good": 0, "num_per_defect": 0, "size": 64}
    folder = tmp_path_factory.mktemp("data") / "set"
    return write_synthetic(folder, categories=("biscuit", "foam_pad"), **sizes)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the training is called with; it returns a made-up result."""
    seen: list[tuple[Any, ...]] = []

    def train(dataset: Any, categories: Any, request: Any, output: Any, **_: Any) -> Any:
        options: Any = resolve_options(request)
        seen.append((categories, request, output, options))
        recipe = UffRecipe(updates=options.uff_updates)
        record = UffRecord(recipe, recipe.plan(2), 2, (9.0, 8.0))
        before = AlignmentAccuracy(0.001, 0.02, 0.004, 100, 2)
        after = AlignmentAccuracy(0.234, 0.531, 0.004, 100, 2)
        return shared_fusion.SharedUff(output, record, before, after, "validation")

    monkeypatch.setattr(shared_fusion, "train_shared_uff", train)
    return seen


def test_the_training_gets_what_was_asked_for(
    data: Path, tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    output = tmp_path / "uff.safetensors"
    flags = ("--uff-updates", 7, "--uff-pairing", "published_dump", "--num-groups", 784)
    command = ("train-shared", data, "-o", output, "--method", "m3dm", "--seed", 3)
    done = run(*command, *flags, "--point-layers", "1,2", "--json")
    assert done.exit_code == 0, done.output
    ((categories, request, path, options),) = calls
    assert (categories, path) == (("biscuit", "foam_pad"), output)
    assert (request.method, request.seed) == ("m3dm", 3)
    assert set(request.options) == {"uff_updates", "uff_pairing", "num_groups", "point_layers"}
    assert (options.uff_updates, options.uff_pairing) == (7, "published_dump")
    assert (options.num_groups, options.point_layers) == (784, (1, 2))
    report = json.loads(done.stdout)
    assert report["categories"] == ["biscuit", "foam_pad"]
    assert report["path"] == str(output)
    assert report["uff"]["alignment_after"]["same_token"] == 0.234
    assert report["uff"]["training"]["updates"] == 7


def test_a_table_shows_the_alignment(
    data: Path, tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    output = tmp_path / "uff.safetensors"
    done = run("train-shared", data, "--method", "m3dm", "-o", output, "--category", "biscuit")
    assert done.exit_code == 0, done.output
    assert calls[0][0] == ("biscuit",)
    for words in ("2 validation scans after 120 updates", "0.10 %", "23.40 %", "53.10 %"):
        assert words in done.stdout
    assert f"wrote {output} (biscuit)" in done.stderr


def test_the_next_command_fits_the_detectors_that_the_training_was_for(
    data: Path, tmp_path: Path, calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backbone's features would not fit the weights."""
    output = tmp_path / "uff.safetensors"
    networks = ("--rgb-backbone", "dinov2-vits14", "--rgb-layers", 8, "--point-layers", "1,2")
    command = ("train-shared", data, "-o", output, "--method", "m3dm-fusion", *networks)
    done = run(*command, "--rgb-weights", "random")
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("next: "))
    assert f"next: mmad-fast bench --data {data} --method m3dm-fusion" in line
    for words in ("--rgb-backbone dinov2-vits14", "--rgb-layers 8", "--point-layers 1,2"):
        assert words in line
    assert line.endswith(f"--uff {output}")
    asked: list[Any] = []

    def stop(*arguments: Any, **_: Any) -> None:
        asked.extend(arguments)
        raise MmadFastError("the benchmark began")

    monkeypatch.setattr("mmad_fast.measure.benchmark.run_benchmark", stop)
    with pytest.raises(MmadFastError, match="began"):
        run(*shlex.split(line)[2:])
    ((_, request, _, options),) = calls
    (found,) = (one for one in asked if isinstance(one, FitRequest))
    assert asked[0] == data
    assert (found.method, found.weights) == (request.method, request.weights)
    assert found.options == {**request.options, "uff": str(output)}
    assert not resolve_options(found).trains_uff
    assert options.trains_uff


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "m3dm-rgb"), "m3dm-rgb has no fusion bank.*m3dm-fusion"),
        (("--method", "m3dm", "--uff", "none"), "uff is 'none', so that there is none to train"),
        (
            ("--method", "cfm"),
            "cfm trains nothing for several categories; methods that do: m3dm, m3dm-fusion$",
        ),
    ],
)
def test_methods_with_nothing_to_train_are_refused(
    data: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        run("train-shared", data, "-o", tmp_path / "uff.safetensors", *arguments)
    assert not list(tmp_path.iterdir())
