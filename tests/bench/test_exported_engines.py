"""bench/exported_engines.py and its page: what is resumed, what is compared with what, and what the
page makes of it."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_arrays

from mmad_fast.artifact import read_artifact
from mmad_fast.detector import load
from mmad_fast.errors import MmadFastError
from mmad_fast.scan import Scan
from mmad_fast.whole_folder import MANIFEST_FILE, fingerprint

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def accuracy(bench_module):
    return bench_module("./exported_accuracy")


@pytest.fixture(scope="module")
def script(accuracy):
    """The script, under another name than its page's, which has the same stem."""
    spec = importlib.util.spec_from_file_location(
        "exported_engines_script", BENCH / "exported_engines.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables(bench_module):
    return bench_module("tables/exported_engines")


def scan_of(seed: int) -> Scan:
    return Scan.from_arrays(*make_arrays(seed), unit="m", name=f"set/test/{seed}")


@pytest.fixture(scope="module")
def detectors(accuracy, tiny_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return accuracy.ExportedDetectors(read_artifact(tiny_artifact), [scan_of(0)], folder)


@pytest.mark.parametrize("target", ["artifact", "onnx"])
def test_the_shared_geometry_changes_nothing(detectors, tiny_artifact, target):
    """Two scans in turns, so that what is kept of one cannot serve the other unseen."""
    plain = load(tiny_artifact, engine="onnxruntime")
    detector = detectors.open(target, "onnxruntime", "fp32")
    for seed in (0, 1, 0):
        expected, found = plain.infer_scan(scan_of(seed)), detector.infer_scan(scan_of(seed))
        scale = expected.anomaly_map.max()
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, atol=1e-5 * scale)
        assert found.image_score == pytest.approx(expected.image_score, rel=1e-5)


def test_other_precisions_are_run_and_are_other(detectors):
    exact = detectors.open("artifact", "onnxruntime", "fp32").infer_scan(scan_of(0))
    half = detectors.open("onnx", "onnxruntime", "fp16").infer_scan(scan_of(0))
    difference = np.abs(half.anomaly_map - exact.anomaly_map).max() / exact.anomaly_map.max()
    assert 1e-6 < difference < 0.02


def test_in_place_of_a_tensorrt_engine_its_graph_is_run(detectors):
    detector = detectors.open("tensorrt-rtx", "onnxruntime", "fp16")
    assert {path.name for path in detector.engine_choice.files.values()} == {
        "rgb.tensorrt-rtx.fp16.onnx",
        "points.tensorrt-rtx.fp16.onnx",
    }
    result = detector.infer_scan(scan_of(0))
    other = detectors.open("onnx", "onnxruntime", "fp16").infer_scan(scan_of(0))
    scale = other.anomaly_map.max()
    np.testing.assert_allclose(result.anomaly_map, other.anomaly_map, atol=0.01 * scale)


def test_equality_is_the_largest_difference_to_the_kept_answers(
    accuracy, detectors, tiny_artifact, tmp_path
):
    detector = detectors.open("artifact", "onnxruntime", "fp32")
    digest = fingerprint(tiny_artifact / MANIFEST_FILE)["sha256"][:12]
    scans = []
    for seed, factor in ((0, 1.0), (1, 1.25)):
        expected = detector.infer_scan(scan_of(seed)).anomaly_map * np.float32(factor)
        np.save(tmp_path / f"set-test-{seed}.{digest}.npy", expected)
        name = f"set/test/{seed}"
        scans.append(SimpleNamespace(name=name, load=lambda seed=seed: scan_of(seed)))
    request = SimpleNamespace(work=tmp_path)
    found = accuracy.equality(detector, scans[:1], request)
    assert (found["map_difference"], found["num_scans"]) == (0, 1)
    assert found["score_difference"] == pytest.approx(0, abs=1e-6)
    found = accuracy.equality(detector, scans, request)
    assert found["map_difference"] == pytest.approx(0.2, rel=1e-4)
    assert found["score_difference"] == pytest.approx(0.2, rel=1e-4)


def test_a_refusal_names_no_folder(accuracy, tmp_path):
    error = MmadFastError(f"{tmp_path}/rgb.bf16.onnx: no kernel for a/b\nand more")
    assert accuracy.refusal(error, tmp_path) == "no kernel for a/b"
    assert accuracy.refusal(MmadFastError("no driver"), tmp_path) == "no driver"


def test_rows_that_are_there_are_not_measured_again(script, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    key = script.engine_key("cfm-t", ("tensorrt-rtx", "fp16", 89))
    rows = script.Rows(file)
    assert not rows.has(key)
    rows.add({**key, "refusal": None})
    assert capsys.readouterr().out == "0 s engine cfm-t tensorrt-rtx tensorrt-rtx fp16 89\n"
    again = script.Rows(file)
    assert again.has(key)
    assert not again.has({**key, "sm": 86})
    assert not again.has({**key, "what": "accuracy"})
    (line,) = file.read_text().splitlines()
    assert "versions" in json.loads(line)["environment"]


def test_the_cells_are_those_asked_for(script):
    arguments = argparse.Namespace(precisions=["fp16"], sms=[86, 89])
    assert script.all_cells(arguments) == [
        ("artifact", "fp32", None),
        ("onnx", "fp16", None),
        ("openvino", "fp16", None),
        ("tensorrt-rtx", "fp16", 86),
        ("tensorrt-rtx", "fp16", 89),
        ("tensorrt", "fp16", None),
    ]


def engine_row(target="onnx", engine="onnxruntime", precision="fp32", sm=None, **changes):
    layers = None
    if target == "tensorrt-rtx":
        layers = {"fused_attention": 1, "kernels": 11, "reformats": 2}
    graph = {
        "files": ["x"],
        "size_bytes": 10 * 2**20,
        "build_s": 0.25,
        "multiply_adds": 6_600_000_000,
        "parameters": 7_800_000,
        "layers": layers,
    }
    runs = target in ("artifact", "onnx", "openvino")
    return {
        "what": "engine",
        "variant": "cfm-t",
        "target": target,
        "engine": engine,
        "precision": precision,
        "sm": sm,
        "refusal": None,
        "library": f"{target} 1",
        "graphs": {"rgb": graph, "points": graph},
        "run_refusal": None if runs else "no GPU",
        "p50_ms": {"rgb": 60.0, "points": 40.0} if runs else {},
        "own_p50_ms": {"rgb": 100.0, "points": 100.0},
        "threads": 2,
        "environment": {
            "cpu": "A",
            "versions": {"onnxruntime": "1.31"},
            "mmad_fast": "0.1.0",
            "commit": "0123456789abcdef",
            "date": "2026-01-01T10:00:00",
        },
    } | changes


def accuracy_row(target="onnx", engine="onnxruntime", precision="fp16", change=0.0, **changes):
    metrics = ("i_auroc", "p_auroc", "aupro_30", "aupro_10", "aupro_5", "aupro_1")
    return engine_row(target, engine, precision) | {
        "what": "accuracy",
        **{name: 0.75 + (change if name == "aupro_10" else 0) for name in metrics},
        "num_scans": 33,
        "num_good": 8,
        "data": "rendered3d",
        "category": "gear",
        "rgb_backbone": "dinov2-vits14",
        **changes,
    }


def equality_row(difference, **changes):
    return engine_row() | {
        "what": "equality",
        "map_difference": difference,
        "score_difference": difference / 2,
        "num_scans": 20,
        **changes,
    }


def page(tables, *rows):
    return tables.render(tables.Rows(rows))


def test_without_rows_the_page_says_so(tables):
    text = tables.render(tables.Rows([]))
    assert "Not measured yet: run `bench/exported_engines.py`" in text


def test_a_line_of_the_matrix(tables):
    text = page(tables, engine_row(), equality_row(2e-5))
    assert "| onnx (onnxruntime) | fp32 | yes | 20.0 | 0.5 | 100 (2.00x) | yes, 2.0e-05 |" in text
    assert "on 20 scans; at most 0.0001 is equal" in " ".join(text.split())
    assert "| cfm-t | rgb | 1 | 7.8 | 6.6 | 10.0 | – | – | – | – |" in text
    assert "A, 2 threads; onnx 1, onnxruntime 1.31; mmad-fast 0.1.0 at 0123456789, 2026" in text
    assert "**no**, 2.0e-04" in page(tables, engine_row(), equality_row(2e-4))


def test_the_last_row_of_a_key_counts(tables):
    text = page(tables, engine_row(), equality_row(2e-4), equality_row(1e-6))
    assert "yes, 1.0e-06" in text


def test_a_refusal_is_a_footnote_once(tables):
    rows = [
        engine_row("tensorrt", "tensorrt", name, refusal="needs a GPU", graphs={}, library=None)
        for name in ("fp32", "fp16")
    ]
    text = page(tables, *rows)
    assert "| tensorrt | fp32 | no (1) | – | – | – | – |" in text
    assert "| tensorrt | fp16 | no (1) | – | – | – | – |" in text
    assert text.count("needs a GPU") == 1


def test_a_large_change_is_not_recommended(tables):
    own = accuracy_row("artifact", precision="fp32")
    for change, words in (
        (0.004, "| AUPRO@10% +0.0040 |"),
        (0.005, "| AUPRO@10% +0.0050 |"),
        (-0.006, "| **not recommended**: AUPRO@10% -0.0060 |"),
        (0.006, "| **not recommended**: AUPRO@10% +0.0060 |"),
    ):
        text = page(tables, engine_row(precision="fp16"), own, accuracy_row(change=change))
        assert words in text
    assert "| cfm-t | onnx | fp16 | onnxruntime | +0.0000 | +0.0000 | +0.0000 | +0.0060 |" in text
    assert "| cfm-t | artifact | fp32, absolute | onnxruntime | 0.7500 |" in text
    assert "With 200 pairs" in " ".join(text.split())


def test_tensorrt_is_told_by_the_engine_that_ran_its_graph(tables):
    own = accuracy_row("artifact", precision="fp32")
    refused = accuracy_row("tensorrt-rtx", "onnxruntime", "int8", refusal="no kernel")
    rows = [
        engine_row("tensorrt-rtx", "tensorrt-rtx", "int8", 89),
        own,
        refused,
        accuracy_row("tensorrt-rtx", "openvino", "int8", change=0.001),
        accuracy_row("onnx", "onnxruntime", "int8", change=0.003),
    ]
    text = page(tables, *rows)
    assert "| no (1) | AUPRO@10% +0.0010 [openvino] |" in text
    assert "1. no GPU" in text
    # The graph of another target is another graph.
    assert "| no (1) | – |" in page(tables, *rows[:3], rows[-1])


def test_fused_attention_is_counted_over_both_graphs(tables):
    rows = [
        engine_row("tensorrt-rtx", "tensorrt-rtx", "fp16", 89),
        engine_row("tensorrt-rtx", "tensorrt-rtx", "bf16", 75, refusal="no bf16 there"),
        engine_row("tensorrt-rtx", "tensorrt-rtx", "bf16", 89),
    ]
    text = page(tables, *rows)
    assert "| variant | precision | sm_75 | sm_89 |" in text
    assert "| cfm-t | fp16 | – | 2 of 2; 22, 4 |" in text
    assert "| cfm-t | bf16 | refused | 2 of 2; 22, 4 |" in text
    assert "- no bf16 there." in text


def test_the_page_is_up_to_date(tables):
    wanted = tables.render(tables.Rows(tables.read_rows(tables.RESULTS)))
    assert tables.PAGE.read_text(encoding="utf-8") == wanted
