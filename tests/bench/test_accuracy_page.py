"""The page of accuracies over seeds and categories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages import load_pages, text_of
from rendering import tables

from mmad_fast.methods.fit_request import FitRequest, resolve_options

ENVIRONMENT = {
    **{"cpu": "a processor", "cores": 2, "versions": {"torch": "2.0"}, "mmad_fast": "0.1.0"},
    **{"commit": "0123456789abcdef", "date": "2026-01-02T03:04:05+00:00"},
}


def row(category: str, seed: int, i_auroc: float | None, **changes: Any) -> dict[str, Any]:
    return {
        **{"setting": "cfm-s", "shots": None, "category": category, "seed": seed},
        "weights": {"rgb": "random"},
        **{"i_auroc": i_auroc, "p_auroc": 0.9, "aupro_30": 0.8},
        **{"aupro_10": 0.7, "aupro_5": 0.6, "aupro_1": 0.5},
        "defects": {"dent": {"i_auroc": 0.25, "aupro_30": 0.125}},
        "environment": ENVIRONMENT,
        **changes,
    }


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The text of the page, made of these rows."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def make(*rows: dict[str, Any], file: str = "cfm_geometry.jsonl") -> str:
        text = "".join(json.dumps(one) + "\n" for one in rows)
        (tmp_path / file).write_text(text)
        return text_of(load_pages()["baselines"])

    return make


def test_the_range_is_that_of_the_seeds_means_over_the_categories(page) -> None:
    fits = [("a", 0, 0.5), ("b", 0, 0.7), ("a", 1, 0.6), ("b", 1, 0.8)]
    text = page(*(row(*fit) for fit in fits))
    assert "| cfm-s | rgb: random | 2 x 2 | 0.650 (0.600–0.700) | 0.900 (0.900–0.900) |" in text
    assert "| cfm-s | rgb: random | 0.550 (0.500–0.600) / 0.800 | 0.750 (0.700–0.800) / 0" in text
    assert "| cfm-s | rgb: random | 0.250 (0.250–0.250) / 0.125 |" in text
    assert "## BTF" not in text  # a section without rows is left out


def test_one_fit_has_no_range_and_what_was_not_measured_is_no_number(page) -> None:
    text = page(row("a", 0, 0.5), row("a", 0, None, setting="cfm-t", weights={}))
    assert "| cfm-s | rgb: random | 1 x 1 | 0.500 | 0.900 |" in text
    assert "| cfm-t | none needed | 1 x 1 | – | 0.900 |" in text


def test_fits_on_few_scans_are_rows_of_their_own(page) -> None:
    text = page(row("a", 0, 0.5), row("a", 0, 0.25, shots=5))
    assert "| cfm-s | rgb: random | 1 x 1 | 0.500 |" in text
    assert "| cfm-s (5 scans) | rgb: random | 1 x 1 | 0.250 |" in text


def test_a_seed_that_lacks_a_category_is_not_in_the_mean_over_categories(page) -> None:
    text = page(row("a", 0, 0.5), row("b", 0, 0.7), row("a", 1, 1.0))
    assert "| cfm-s | rgb: random | 2 x 1 | 0.600 |" in text


def distilled(method: str, **changes: Any) -> dict[str, Any]:
    """A row of a method whose options say how the papers call it."""
    options = changes.pop("options", {})
    request = FitRequest(method=method, options=options)
    row_ = row("a", 0, 0.5, setting=method, rgb_backbone="wide-resnet50-2", schedule="quick")
    return {**row_, "parameters": resolve_options(request).to_manifest(), **changes}


def test_figures_are_found_by_what_a_detector_consists_of(page) -> None:
    text = page(
        distilled("mmrd"),
        distilled("mmrd", schedule="published"),
        distilled("trd", setting="trd auxiliary=depth", options={"auxiliary": "depth"}),
        distilled("rd"),
        distilled("trd", rgb_backbone="dinov2-vits14", options={"rgb_backbone": "dinov2-vits14"}),
        file="mmrd.jsonl",
    )
    figures = {
        cells[1].strip(): cells[-2].strip()
        for cells in (line.split("|") for line in text.splitlines())
        if len(cells) == 12
    }
    assert figures["mmrd"] == figures["mmrd schedule=published"] == "0.950, 0.976, 0.992"
    assert figures["trd auxiliary=depth"] == "0.962, 0.969, 0.994"
    assert figures["rd"] == "–"  # printed for another data set alone
    assert figures["trd rgb_backbone=dinov2-vits14"] == "–"


def test_ablations_stand_beside_those_of_the_papers_data_set(page) -> None:
    options = {"auxiliary": "normals", "fusion": "constant"}
    text = page(
        distilled("mmrd", setting="mmrd fusion=constant", options=options),
        distilled("rd"),
        file="mmrd_ablations.jsonl",
    )
    assert "| 0.930, 0.928, 0.981 |" in text
    assert "| 0.840, 0.889, 0.967 |" in text


def test_a_fit_is_a_line(page) -> None:
    fit = {"setting": "quick", "method": "rd", "data": "parts", "num_scans": 244, "num_threads": 2}
    fit |= {"seconds": 61.2, "stage_s": {"export": 1.0, "training": 60.2}}
    fit |= {"process_peak_mib": 900.4, "environment": ENVIRONMENT}
    text = page(fit, file="mmrd_fit.jsonl")
    assert "- **rd, quick schedule, 244 scans** (parts): 61 s with 2 threads" in text
