"""bench/exports.py and its page: what is compared with what, and what the page makes of it."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_arrays
from exports import built, equality, exported, refusal
from pages import load_pages
from rendering import engines

from mmad_fast.detector import load
from mmad_fast.errors import MmadFastError
from mmad_fast.scan import Scan

PAGE = load_pages()["engines"]


def scan_of(seed: int) -> Scan:
    return Scan.from_arrays(*make_arrays(seed), unit="m", name=f"set/test/{seed}")


@pytest.mark.parametrize(
    ("target", "precision", "least", "most"),
    [
        ("artifact", "fp32", 0, 1e-5),
        ("tensorrt-rtx", "fp32", 0, 1e-4),
        ("onnx", "fp16", 1e-6, 0.02),
    ],
)
def test_other_graphs_give_the_same_answer_but_for_their_precision(
    tiny_artifact, tmp_path, target, precision, least, most
):
    own = load(tiny_artifact, engine="onnxruntime")
    row = {"target": target, "engine": "onnxruntime", "precision": precision}
    detector = exported(own, [scan_of(0)], row, tmp_path / "other")
    expected, found = own.infer_scan(scan_of(1)), detector.infer_scan(scan_of(1))
    difference = np.abs(found.anomaly_map - expected.anomaly_map).max()
    assert least <= difference / expected.anomaly_map.max() <= most


def test_building_says_sizes_cost_and_time_or_why_not(tiny_artifact, tmp_path):
    own = load(shutil.copytree(tiny_artifact, tmp_path / "artifact"), engine="onnxruntime")
    cell = {"target": "onnx", "precision": "fp32"}
    row = built(own, cell, [])
    assert row["library"].startswith("onnx")
    for graph in row["graphs"].values():
        assert graph["size_bytes"] > 1000
        assert graph["multiply_adds"] > graph["parameters"] > 0
    assert sum(row["p50_ms"].values()) > 0
    assert row["own_p50_ms"]["all"] > 0
    kept = built(own, {"target": "artifact", "precision": "fp32"}, [])
    assert {graph["files"][0] for graph in kept["graphs"].values()} == {"rgb.onnx", "points.onnx"}
    refused = built(own, {"target": "tensorrt-rtx", "precision": "fp32", "sm": 12}, [])
    assert refused["refusal"]
    assert refused["graphs"] == {}


@pytest.mark.parametrize(("factors", "expected"), [((1.0,), 0.0), ((1.0, 1.25), 0.2)])
def test_equality_is_the_largest_difference_to_the_published_pipeline(
    tiny_artifact, factors, expected
):
    detector = load(tiny_artifact)
    scans = [
        SimpleNamespace(load=lambda seed=seed, **_: Scan.from_arrays(*make_arrays(seed)))
        for seed in range(len(factors))
    ]
    remaining = iter(factors)

    def published(prepared, clock):
        result, factor = detector.infer_prepared(prepared), np.float32(next(remaining))
        return SimpleNamespace(
            anomaly_map=result.anomaly_map * factor, image_score=result.image_score * factor
        )

    found = equality(detector, published, scans)
    assert found["num_scans"] == len(factors)
    assert found["map_difference"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found["score_difference"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_refusal_names_no_folder(tmp_path):
    error = MmadFastError(f"{tmp_path}/rgb.bf16.onnx: no kernel for a/b\nand more")
    assert refusal(error, tmp_path) == "no kernel for a/b"
    assert refusal(MmadFastError("no driver"), tmp_path) == "no driver"


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


def page(*rows):
    return engines.render_rows(engines.Rows(rows), PAGE)


def test_without_rows_the_page_says_so():
    text = page()
    assert "Not measured yet: run `bench/sweep.py engines`" in text


def test_a_line_of_the_matrix():
    text = page(engine_row(), equality_row(2e-5))
    assert "| onnx (onnxruntime) | fp32 | yes | 20.0 | 0.5 | 100 (2.00x) | yes, 2.0e-05 |" in text
    assert "on 20 scans; at most 0.0001 is equal" in " ".join(text.split())
    assert "| cfm-t | rgb | 1 | 7.8 | 6.6 | 10.0 | – | – | – | – |" in text
    assert "A, 2 threads; onnx 1, onnxruntime 1.31; mmad-fast 0.1.0 at 0123456789, 2026" in text
    assert "**no**, 2.0e-04" in page(engine_row(), equality_row(2e-4))


def test_the_last_row_of_a_key_counts():
    text = page(engine_row(), equality_row(2e-4), equality_row(1e-6))
    assert "yes, 1.0e-06" in text


def test_a_refusal_is_a_footnote_once():
    rows = [
        engine_row("tensorrt", "tensorrt", name, refusal="needs a GPU", graphs={}, library=None)
        for name in ("fp32", "fp16")
    ]
    text = page(*rows)
    assert "| tensorrt | fp32 | no (1) | – | – | – | – |" in text
    assert "| tensorrt | fp16 | no (1) | – | – | – | – |" in text
    assert text.count("needs a GPU") == 1


def test_a_large_change_is_not_recommended():
    own = accuracy_row("artifact", precision="fp32")
    for change, words in (
        (0.004, "| AUPRO@10% +0.0040 |"),
        (0.005, "| AUPRO@10% +0.0050 |"),
        (-0.006, "| **not recommended**: AUPRO@10% -0.0060 |"),
        (0.006, "| **not recommended**: AUPRO@10% +0.0060 |"),
    ):
        text = page(engine_row(precision="fp16"), own, accuracy_row(change=change))
        assert words in text
    assert "| cfm-t | onnx | fp16 | onnxruntime | +0.0000 | +0.0000 | +0.0000 | +0.0060 |" in text
    assert "| cfm-t | artifact | fp32, absolute | onnxruntime | 0.7500 |" in text
    assert "With 200 pairs" in " ".join(text.split())


def test_tensorrt_is_told_by_the_engine_that_ran_its_graph():
    own = accuracy_row("artifact", precision="fp32")
    refused = accuracy_row("tensorrt-rtx", "onnxruntime", "int8", refusal="no kernel")
    rows = [
        engine_row("tensorrt-rtx", "tensorrt-rtx", "int8", 89),
        own,
        refused,
        accuracy_row("tensorrt-rtx", "openvino", "int8", change=0.001),
        accuracy_row("onnx", "onnxruntime", "int8", change=0.003),
    ]
    text = page(*rows)
    assert "| no (1) | AUPRO@10% +0.0010 [openvino] |" in text
    assert "1. no GPU" in text
    # The graph of another target is another graph.
    assert "| no (1) | – |" in page(*rows[:3], rows[-1])


def test_fused_attention_is_counted_over_both_graphs():
    rows = [
        engine_row("tensorrt-rtx", "tensorrt-rtx", "fp16", 89),
        engine_row("tensorrt-rtx", "tensorrt-rtx", "bf16", 75, refusal="no bf16 there"),
        engine_row("tensorrt-rtx", "tensorrt-rtx", "bf16", 89),
    ]
    text = page(*rows)
    assert "| variant | precision | sm_75 | sm_89 |" in text
    assert "| cfm-t | fp16 | – | 2 of 2; 22, 4 |" in text
    assert "| cfm-t | bf16 | refused | 2 of 2; 22, 4 |" in text
    assert "- no bf16 there." in text
