"""The pages of M3DM: what is on them, and what they lack while only some rows are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages import load_pages, text_of
from rendering import tables
from settings import RESULTS

ENVIRONMENT = {
    **{"cpu": "a processor", "cores": 2, "versions": {"torch": "2.0"}, "mmad_fast": "0.1.0"},
    **{"commit": "0123456789abcdef", "date": "2026-01-02T03:04:05+00:00"},
}
RGB = {"rgb_backbone": "dinov2-vits14", "rgb_layers": 8}
POINT = {"point_layers": [0]}


def row(setting: str, i_auroc: float, *, shots: int | None = None, **changes: Any) -> dict:
    """A row of bench/sweep.py m3dm_configurations."""
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
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The text of a page, made from rows by the stem of their file."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def make(name: str, **rows: list[dict]) -> str:
        for stem, of_file in rows.items():
            text = "".join(json.dumps(one) + "\n" for one in of_file)
            (tmp_path / f"{stem}.jsonl").write_text(text)
        return text_of(load_pages()[name])

    return make


def three(setting: str, *values: float, **changes: Any) -> list[dict]:
    """A row of each of three categories."""
    names = ("cookie", "gear", "potato")
    pairs = zip(names, values, strict=True)
    return [row(setting, value, category=name, **changes) for name, value in pairs]


def test_configurations_stand_beside_the_published_ones(page) -> None:
    rgb = row("m3dm-rgb", 0.5, backbones=RGB, weights={"rgb": "file"})
    text = page("configurations", m3dm_configurations=[rgb, *three("m3dm", 0.5, 0.75, 1.0)])
    assert "| m3dm | 3 | 0.750 | 0.900 | 0.800 | 0.700 | 0.600 | 0.500 | 0.945, 0.964," in text
    assert "| m3dm-rgb | 0.500 / 0.800 | 0.250 / 0.125 |" in text
    assert "dinov2-vits14, 8 layers (weights: file), Point-MAE block 0 (weights: random)" in text
    for title in ("Switches", "Few-shot", "Point settings", "Feature fusion"):
        assert f"## {title}" not in text


def test_switches_are_differences_to_the_methods_own(page) -> None:
    own = three("m3dm", 0.5, 0.5, 0.5)
    rows = [*own, *three("m3dm blur=float", 0.25, 0.5, 0.75)]
    text = page("configurations", m3dm_configurations=rows)
    assert "| blur=float | 3 | +0.0000 (-0.250, +0.250) | +0.0000" in text
    assert "Single fits" not in text
    assert "## Switches" not in page("configurations", m3dm_configurations=rows[3:])


@pytest.mark.parametrize("fits", [1, 2])
def test_fewer_than_three_fits_are_single_fits_and_no_price(page, fits: int) -> None:
    """One fit has no mean, and no smallest and largest."""
    switched = three("m3dm blur=float", 0.25, 0.5, 0.75)[:fits]
    text = page("configurations", m3dm_configurations=[*three("m3dm", 0.5, 0.5, 0.5), *switched])
    single = text.partition("### Single fits")[2].partition("\n## ")[0]
    assert "Fewer than 3 fits" in single
    assert "| blur=float | cookie | 0 | -0.2500 | +0.0000 |" in single
    assert single.count("| blur=float |") == fits
    assert "(" not in single.partition("| blur=float |")[2].partition("\n\n")[0]
    assert "blur=float | 1 |" not in text
    lone = page("configurations", m3dm_configurations=[row("m3dm", 0.5)])
    assert "| m3dm, cookie alone | 1 | 0.500 |" in lone


def test_few_shots_and_point_settings_name_their_published_rows(page) -> None:
    rows = three("m3dm", 0.75, 0.75, 0.75) + three("m3dm", 0.5, 0.5, 0.5, shots=5)
    rows += three("m3dm-3d point_patches=28x28", 0.25, 0.25, 0.25)
    text = page("configurations", m3dm_configurations=rows)
    assert "| m3dm | 5 | 3 | 0.500 |" in text
    assert "| m3dm | 24 | 3 | 0.750 |" in text
    assert "| 128/1024, 28x28 patches | 3 | 0.250 |" in text


def test_the_page_of_speed_names_files_that_are_there() -> None:
    """It once claimed rows of the coreset that were never committed."""
    title = load_pages()["speed_with_banks"]["title"]
    named = title.partition("bench/results/{")[2].partition("}")[0].split(",")
    assert named == ["m3dm_inference", "m3dm_fit"]
    assert all((RESULTS / f"{stem}.jsonl").is_file() for stem in named)


@pytest.mark.parametrize("name", ["configurations", "speed_with_banks"])
def test_a_page_without_rows_has_its_title_only(page, name: str) -> None:
    assert page(name).startswith("# M3DM: ")
    assert "|" not in page(name)
