"""fit, eval and bench from scans to tables, with random weights and one transformer layer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from cli.conftest import Call
from PIL import Image

from mmad_fast.artifact import read_artifact
from mmad_fast.data.synthetic import write_synthetic
from mmad_fast.export import export_detector

pytest.importorskip("torch", reason="fitting needs torch")

ROW_KEYS = {
    *("method", "category", "protocol", "device", "engine", "threads", "weights"),
    *("latency_ms_p50", "latency_ms_p95", "latency_ms_p99", "fps", "weights_mib"),
    *("peak_working_mib", "process_peak_mib", "stage_ms", "i_auroc", "p_auroc", "aupro_30"),
    *("aupro_10", "aupro_5", "aupro_1", "aupro_mode", "published"),
}
SMALL = ("--rgb-backbone", "dinov2-vits14", "--rgb-layers", 1, "--point-layers", 0)
RANDOM = ("--rgb-weights", "random", "--point-weights", "random", "--epochs", 1)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = "from mmad_fast.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(
        tmp_path_factory.mktemp("data") / "set",
        categories=("biscuit", "foam_pad"),
        num_train=2,
        num_validation=1,
        num_good=1,
        num_per_defect=1,
        size=128,
    )


@pytest.fixture(scope="module")
def artifact(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fit") / "artifact"
    done = run(
        "fit", data, "--category", "biscuit", "-o", target, "--method", "cfm-t", *RANDOM, *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy means nothing" in done.stderr
    assert "the only score (validation scans): about 1 in 2 good parts will be" in done.stderr
    return target


def test_a_fitted_artifact_answers_its_golden_scan(artifact: Path) -> None:
    done = run("doctor", artifact, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["artifact"]["agrees"] is True


def test_a_fit_that_is_told_to_end_leaves_nothing(
    data: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    from mmad_fast.methods.fit_run import FitTask

    left: list[list[str]] = []

    def end(*arguments: object) -> None:
        left.append(os.listdir(scratch))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FitTask, "of", end)
    options = ("--category", "biscuit", "--method", "cfm-t", *RANDOM, *SMALL)
    done = call("fit", data, "-o", tmp_path / "runs" / "new", *options)
    assert done.returncode == 143, done.stderr
    assert "interrupted by SIGTERM" in done.stderr
    assert left[0], "there was something to leave"
    assert not (tmp_path / "runs").exists()
    assert not set(left[0]) & set(os.listdir(scratch))


def test_a_checkpoint_reaches_the_fit(data: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "checkpoint").write_text("none")
    arguments = ("fit", data, "--category", "biscuit", "-o", tmp_path / "a", "--method")
    result = call(*arguments, "ast-depth", "--checkpoint", tmp_path / "checkpoint")
    assert result.returncode == 1
    assert "checkpoint: this is no checkpoint of a training" in result.stderr
    result = call(*arguments, "btf-fpfh", "--checkpoint", tmp_path / "checkpoint")
    assert result.returncode == 1
    assert "the fit of btf-fpfh keeps none" in result.stderr


def test_eval_prints_a_row(artifact: Path, data: Path) -> None:
    done = run("eval", artifact, "--data", data, "--category", "biscuit", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert set(row) >= ROW_KEYS
    assert 0 <= row["i_auroc"] <= 1
    assert row["aupro_mode"] == "published"
    assert row["latency_ms_p50"] > 0
    assert set(row["defects"]) == {"stain", "dent", "bump", "crack", "mismatch"}


def test_the_engines_of_a_fitted_artifact(artifact: Path, tmp_path: Path) -> None:
    """Real backbones: attention is one fused region per graph, and every engine answers alike."""
    new, source = tmp_path / "new", artifact
    for target, precision, sms in (
        ("onnx", "fp32", ()),
        ("openvino", "fp32", ()),
        ("tensorrt-rtx", "fp16", (89,)),
    ):
        module = target.replace("-", "_")
        pytest.importorskip(module, reason=f"{target} is not installed")
        report = export_detector(
            source, to=target, precision=precision, sms=sms, output=new, cache=False, measure=False
        )
        source = new
        if target in ("onnx", "openvino"):
            assert report.golden_difference is not None
            assert report.golden_difference < 1e-4, target
    assert [layers["fused_attention"] for layers in report.layers.values()] == [1, 1]
    assert len(read_artifact(new).manifest.engines) == 3


def test_bench_compares_with_the_published_pipeline(data: Path, tmp_path: Path) -> None:
    results = tmp_path / "rows.jsonl"
    options = (
        "--category",
        "foam_pad",
        "--speed-only",
        "--compare",
        "reference",
        "--protocol",
        "paper",
    )
    done = run(
        "bench", "--method", "cfm-t", "--data", data, *options, *RANDOM, *SMALL,
        "--results", results, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    fast, reference = content["rows"]
    assert (fast["engine"], reference["engine"]) == ("onnxruntime", "reference")
    assert min(row["latency_ms_p50"] for row in (fast, reference)) > 0
    assert 0 <= reference["map_difference"] < 1e-3
    assert 0 <= reference["score_difference"] < 1e-3
    assert fast["map_difference"] is fast["score_difference"] is fast["latency_ms_p99"] is None
    assert fast["data"] == "set"
    assert fast["configuration"]["rgb_backbone"] == "dinov2-vits14"
    assert fast["i_auroc"] is fast["peak_working_mib"] is reference["weights_mib"] is None
    assert "preprocess" not in fast["stage_ms"]
    assert fast["published"] is None  # cfm-t has another backbone
    assert content["environment"]["cores"] >= 1
    assert len(results.read_text().splitlines()) == 2


def test_bench_refuses_results_that_cannot_be_written_at_once(data: Path) -> None:
    done = run("bench", "--data", data, *RANDOM, "--results", data / "biscuit")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr


def test_bench_names_an_unknown_category(data: Path) -> None:
    done = run("bench", "--data", data, "--category", "spaceship", *RANDOM)
    assert done.returncode == 1
    assert "has no category 'spaceship'; it has: biscuit, foam_pad" in done.stderr


def test_fit_needs_a_category_where_there_are_several(data: Path, tmp_path: Path) -> None:
    done = run("fit", data, "-o", tmp_path / "artifact", *RANDOM)
    assert done.returncode == 1
    assert "choose one with --category: biscuit, foam_pad" in done.stderr
    assert list(tmp_path.iterdir()) == []


def write_dome(folder: Path, name: str, seed: int, *, missing: float, scale: float = 1.0) -> None:
    """A dome without background in millimetres; what was not measured is `missing`."""
    columns, rows = np.meshgrid(np.arange(96) - 47.5, np.arange(96) - 47.5)
    rng = np.random.default_rng(seed)
    squared_radius = (columns**2 + rows**2) / 35**2
    z = 500 - 20 * np.sqrt(np.clip(1 - squared_radius, 0, 1)) + rng.normal(0, 0.05, rows.shape)
    xyz = np.stack([columns * z / 670, rows * z / 670, z], axis=-1) * scale
    xyz[squared_radius >= 1] = missing
    for kind in ("rgb", "xyz"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    rgb = rng.integers(90, 110, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(folder / "rgb" / f"{name}.png")
    file = folder / "xyz" / f"{name}.tiff"
    tifffile.imwrite(file, xyz.astype(np.float32), photometric="rgb")


def test_a_number_for_no_measurement_is_told_recorded_and_missing(tmp_path: Path) -> None:
    """Fitted on scans with -9999, zeros and NaN in their place score the same, in metres too."""
    for split, count in (("train", 2), ("validation", 1)):
        for seed in range(count):
            write_dome(tmp_path / "set" / split / "good", f"{seed}", seed, missing=-9999)
    for name, missing in (("nan", np.nan), ("sentinel", -9999), ("zero", 0)):
        write_dome(tmp_path / "mm", name, 5, missing=missing)
    write_dome(tmp_path / "m", "metres", 5, missing=-9999, scale=1e-3)
    target = tmp_path / "artifact"
    fit = ("fit", tmp_path / "set", "-o", target, "--unit", "mm", "--method", "cfm-t")
    done = run(*fit, *RANDOM, *SMALL)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "taken as missing" in line]
    assert len(said) == 1
    share = r"\(-9999, -9999, -9999\) at 58\.\d% of the pixels of 3 scans"
    assert re.search(share, said[0])
    (value,) = json.loads((target / "manifest.json").read_text())["missing_values"]["values"]
    assert value["point"] == [-9999.0] * 3
    scores = {}
    for unit in ("mm", "m"):
        scored = run("infer", target, tmp_path / unit, "--unit", unit, "--json")
        assert scored.returncode == 0, scored.stderr
        rows = json.loads(scored.stdout)["scans"]
        scores |= {row["scan"]: row["image_score"] for row in rows}
    assert scores["zero"] == scores["nan"] == scores["sentinel"]
    assert scores["metres"] == pytest.approx(scores["zero"], rel=1e-3)
