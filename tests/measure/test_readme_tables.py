"""bench/rendering/readme.py: which rows it takes, and what it says of them."""

from __future__ import annotations

import pytest
from pages import load_pages
from rendering import readme

from mmad_fast.measure.generated_pages import latest

OWN = {"rgb_backbone": "dino-vitb8", "rgb_layers": 4, "point_layers": [1, 2, 3]}
OTHER = {"rgb_backbone": "dinov2-vits14", "rgb_layers": 8, "point_layers": [0]}


PAGE = load_pages()["readme"]


def latest_rows(*rows: dict) -> list[dict]:
    return latest(list(rows), *readme.IDENTITY)


def render(*rows: dict) -> str:
    return readme.render_rows(rows, PAGE)


def row(*, cpu: str = "A", date: str = "2026-01-01T10:00:00", **changes: object) -> dict:
    content = {
        "method": "cfm-s",
        "category": "cookie",
        "data": "rendered3d",
        "configuration": OWN,
        "protocol": "end-to-end",
        "engine": "onnxruntime",
        "device": "cpu",
        "threads": 2,
        "weights": "rgb: file, point: file",
        **dict.fromkeys(("latency_ms_p95", "weights_mib", "peak_working_mib", "process_peak_mib")),
        **dict.fromkeys(("p_auroc", "aupro_30", "aupro_10", "aupro_5", "aupro_1")),
        "latency_ms_p50": 812.0,
        "fps": 1.25,
        "i_auroc": None,
        "environment": {
            "cpu": cpu,
            "versions": {"onnxruntime": "1.2", "torch": None},
            "mmad_fast": "0.1.0",
            "date": date,
        },
    }
    return content | changes


@pytest.mark.parametrize(
    "change", [{"configuration": OTHER}, {"data": "procedural"}, {"threads": 1}]
)
def test_rows_of_other_detectors_and_data_sets_stand_side_by_side(change) -> None:
    rows = latest_rows(row(), row(**change))
    assert len(rows) == 2


def test_a_later_row_of_the_same_takes_the_place_of_the_earlier() -> None:
    (last,) = latest_rows(row(fps=1.0), row(fps=2.0))
    assert last["fps"] == 2.0


def test_a_method_with_other_layers_is_told_apart() -> None:
    text = render(row(), row(configuration=OTHER, i_auroc=0.83))
    assert "| cfm-s | rendered3d |" in text
    assert text.count("| cfm-s (dinov2-vits14 8 layers, blocks 0) | rendered3d |") == 2


def test_every_machine_has_a_line_and_every_row_its_machine() -> None:
    text = render(row(), row(category="potato", cpu="B"), row(category="rope"))
    assert "1. A, 2 threads, batch 1, onnxruntime 1.2, mmad-fast 0.1.0, 2026-01-01." in text
    assert "2. B, 2 threads" in text
    lines = [line for line in text.splitlines() if "rendered3d" in line]
    assert [line.split(" | ")[5] for line in lines] == ["1", "2", "1"]
    alone = render(row(), row(category="rope", date="2026-01-01T23:00:00"))
    assert "machine" not in alone
    assert "\nA, 2 threads" in alone
