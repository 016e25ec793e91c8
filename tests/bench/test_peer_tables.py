"""bench/rendering/cpu.py: ratios, targets, slopes, and what it says of those without a time."""

from __future__ import annotations

import pytest
from pages import load_pages
from rendering import cpu

PAGE = load_pages()["cpu"]


def rendered(cases):
    return cpu.render_cases(cases, PAGE)


def row(backend="mmad-fast", p50=1.0, **changes):
    return {
        "what": "farthest_point_sampling",
        "backend": backend,
        "is_ours": backend.startswith("mmad-fast"),
        "part": None,
        "data": "real frame",
        "shapes": {"N": 13_000, "G": 1024},
        "threads": 2,
        "p50_ms": p50,
        "parameter": None,
        "agreement": "same indices" if p50 else None,
        "refusal": None if p50 else "another result",
        "detail": None,
        "note": None,
        "case": "2026-01-01",
        "environment": {
            "cpu": "A",
            "versions": {"numpy": "2"},
            "mmad_fast": "0.1.0",
            "commit": "0123456789abcdef",
            "commit_is_clean": True,
            "date": "2026-01-01T10:00:00",
        },
    } | changes


def test_the_last_run_of_a_case_counts_as_a_whole():
    lines = [
        row(backend, time_ms, case=case)
        for case, time_ms in (("2026-01-02", 2.0), ("2026-01-01", 1.0))
        for backend in ("mmad-fast", "peer")
    ] + [row(shapes={"N": 5, "G": 1})]
    first, second = cpu.latest_cases(lines)
    assert [r["p50_ms"] for r in first] == [2.0, 2.0]
    assert [r["shapes"]["N"] for r in second] == [5]


def test_the_fastest_peer_is_not_ours_does_the_whole_job_and_was_timed():
    rows = [row("mmad-fast, shared index", 1.0), row("part", 2.0, part="a part")]
    rows += [row("wrong", None), row("peer", 4.0), row("slow", 5.0)]
    assert cpu.fastest_peer(rows)["backend"] == "peer"
    assert cpu.fastest_peer(rows[:3]) is None


def test_a_table_has_times_ratio_and_the_target():
    rows = [row(p50=2.0), row("peer", 3.5, parameter="h=3"), row("slow", 123.4), row("no", None)]
    text = rendered([rows])
    assert (
        "| real frame | 13000 | 1024 | 2 | **3.5 (h=3)** | 123 | – | 1.75x | ≥ 1.5x: 1.75x, met |"
        in text
    )
    assert "- peer: same indices." in text
    assert "- no: not timed: another result." in text
    assert "numpy 2; mmad-fast 0.1.0 at 0123456789, 2026-01-01." in text
    assert "≥ 1.5x: 1.25x, missed" in rendered([[row(p50=2.8), row("peer", 3.5)]])
    small = {"shapes": {"N": 5000, "G": 1024}}
    assert "≥" not in rendered([[row(**small), row("peer", 3.5, **small)]])


def test_a_target_against_one_peer_and_one_that_is_a_limit():
    weights = {"what": "inverse_distance_weights"}
    rows = [row(p50=2.0, **weights), row("pykdtree", 5.0, **weights), row("scipy", 3.0, **weights)]
    text = rendered([rows])
    assert "| 1.50x | ≥ 2x pykdtree: 2.50x, met |" in text
    dense = {
        "what": "inverse_distance_interpolation",
        "shapes": {"N": 50_000, "G": 1024, "C": 1152},
    }
    bound = row("writing the output", 10.0, part="lower bound", **dense)
    text = rendered([[row(p50=16.0, **dense), row("torch", 90.0, **dense), bound]])
    assert "*writing the output*" in text
    assert "- writing the output: lower bound" in text
    assert "≤ 1.5x of writing the output: 1.60x, missed" in text


def test_ours_with_the_shared_index_has_a_ratio_of_its_own():
    group = {"what": "knn_grouping", "shapes": {"N": 13_000, "G": 1024, "K": 128}}
    rows = [row(p50=2.0, **group), row("mmad-fast, shared index", 1.0, **group)]
    text = rendered([[*rows, row("pykdtree", 5.0, **group)]])
    assert "| ratio | ratio, shared index | target |" in text
    assert "| 2.50x | 5.00x | ≥ 2x: 2.50x, met |" in text


def test_the_slope_is_the_exponent():
    sizes = [10, 100, 1000]
    assert cpu.slope(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert cpu.slope(sizes, [7.0, 7.0, 7.0]) == pytest.approx(0)


def test_growth_is_shown_from_three_sizes_on_for_ours_and_the_fastest_at_the_largest():
    def case(size, ours, peer, other):
        shapes = {"N": size, "G": 1024}
        return [
            row(p50=ours, shapes=shapes),
            row("peer", peer, shapes=shapes),
            row("other", other, shapes=shapes),
        ]

    cases = [case(10_000, 4, 9, 40), case(100, 2, 1, 4), case(1_000, 3, 3, None)]
    text = rendered(cases)
    assert "| data | fixed | who | N=100 | N=1000 | N=10000 | slope |" in text
    assert "| real frame | G=1024 | peer | 1 | 3 | 9 | 0.48 |" in text
    assert "| G=1024 | other |" not in text
    assert "Growth" not in rendered(cases[:2])
    # Only other numbers of samples: no line of the main table, but of the growth.
    samples = [
        [row(p50=g / 100, shapes={"N": 50, "G": g}), row("peer", g, shapes={"N": 50, "G": g})]
        for g in (128, 256, 1024)
    ]
    text = rendered(samples)
    assert "| real frame | 50 | 1024 |" in text
    assert "| real frame | 50 | 128 |" not in text
    assert "| real frame | N=50 | peer | 128 | 256 | 1024 | 1.00 |" in text


def test_without_rows_the_page_says_so():
    assert "No rows yet" in rendered([])
    assert "## Machine" not in rendered([])
