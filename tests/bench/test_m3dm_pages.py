"""bench/tables/m3dm_accuracy.py and m3dm_speed.py: what is on a page, and what a page lacks while
only some rows are measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ENVIRONMENT = {
    **{"cpu": "a processor", "cores": 2, "versions": {"torch": "2.0"}, "mmad_fast": "0.1.0"},
    **{"commit": "0123456789abcdef", "date": "2026-01-02T03:04:05+00:00"},
}
RGB = {"rgb_backbone": "dinov2-vits14", "rgb_layers": 8}
POINT = {"point_layers": [0]}


def row(setting: str, i_auroc: float, *, shots: int | None = None, **changes: Any) -> dict:
    """A row of bench/m3dm_configurations.py."""
    return {
        **{"setting": setting, "shots": shots, "category": "cookie", "seed": 0, "data": "parts"},
        "backbones": {**RGB, **POINT},
        "weights": {"rgb": "file", "point": "random"},
        "num_train_scans": shots or 24,
        **{"i_auroc": i_auroc, "p_auroc": 0.9, "aupro_30": 0.8},
        **{"aupro_10": 0.7, "aupro_5": 0.6, "aupro_1": 0.5},
        "defects": {"dent": {"i_auroc": 0.25, "aupro_30": 0.125}},
        "environment": ENVIRONMENT,
        **changes,
    }


@pytest.fixture
def page(bench_module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The text of the page of a script, made from rows by the stem of their file."""

    def make(name: str, **rows: list[dict]) -> str:
        module: ModuleType = bench_module(f"tables/{name}")
        monkeypatch.setattr(module, "RESULTS", tmp_path)
        for stem, of_file in rows.items():
            text = "".join(json.dumps(one) + "\n" for one in of_file)
            (tmp_path / f"{stem}.jsonl").write_text(text)
        (text,) = module.render_pages().values()
        return text

    return make


def test_configurations_stand_beside_the_published_ones(page) -> None:
    rgb = row("m3dm-rgb", 0.5, backbones=RGB, weights={"rgb": "file"})
    text = page("m3dm_accuracy", m3dm_configurations=[rgb, row("m3dm", 0.75)])
    assert "| m3dm | 1 | 0.750 | 0.900 | 0.800 | 0.700 | 0.600 | 0.500 | 0.945, 0.964," in text
    assert "| m3dm-rgb | 0.500 / 0.800 | 0.250 / 0.125 |" in text
    assert "dinov2-vits14, 8 layers (weights: file), Point-MAE block 0 (weights: random)" in text
    for title in ("Switches", "Few-shot", "Point settings", "Feature fusion"):
        assert f"## {title}" not in text


def test_switches_are_differences_to_the_methods_own(page) -> None:
    rows = [row("m3dm", 0.75), row("m3dm blur=float", 0.625)]
    text = page("m3dm_accuracy", m3dm_configurations=rows)
    assert "| blur=float | 1 | -0.1250 (-0.125, -0.125) | +0.0000" in text
    assert "## Switches" not in page("m3dm_accuracy", m3dm_configurations=rows[1:])


def test_few_shots_and_point_settings_name_their_published_rows(page) -> None:
    rows = [row("m3dm", 0.75), row("m3dm", 0.5, shots=5), row("m3dm-3d point_patches=28x28", 0.25)]
    text = page("m3dm_accuracy", m3dm_configurations=rows)
    assert "| m3dm | 5 | 1 | 0.500 |" in text
    assert "| m3dm | 24 | 1 | 0.750 |" in text
    assert "| 128/1024, 28x28 patches | 1 | 0.250 |" in text


@pytest.mark.parametrize("name", ["m3dm_accuracy", "m3dm_speed"])
def test_a_page_without_rows_has_its_title_only(page, name: str) -> None:
    assert page(name).startswith("# M3DM: ")
    assert "|" not in page(name)
