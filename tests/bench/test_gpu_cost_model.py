"""The GPU cost model: formulas against cases worked by hand and against known totals."""

from __future__ import annotations

import pytest
from mmad_fast.methods.variants import VARIANTS

from mmad_fast.measure.generated_pages import write_pages


@pytest.fixture(scope="module")
def page(bench_module):
    return bench_module("tables/gpu_cost_model")


@pytest.fixture(scope="module")
def costs(page):
    return page.costs


@pytest.fixture(scope="module")
def detectors(page):
    return page.detectors


def test_sampling_measures_every_point_in_every_step(costs):
    work = costs.farthest_point_sampling(7, 3)
    assert work.plain_flop == 3 * 7 * 10
    assert work.device_bytes == 7 * 12 + 3 * 8
    assert work.matrix_flop == 0


def test_grouping_passes_twice_over_the_distances_and_sorts(costs):
    work = costs.knn_grouping(10, 2, 4)
    # A bitonic sort of 4: (1 + 2) rounds of 2 comparisons.
    assert work.plain_flop == 2 * (2 * 10 * 9 + 6)
    assert work.device_bytes == 10 * 12 + 2 * 8 + 2 * 4 * (8 + 12)
    assert costs.knn_grouping(10, 2, 1).plain_flop == 2 * 2 * 10 * 9


def test_interpolation_by_hand(costs):
    weights = costs.inverse_distance_weights(10, 4)
    assert weights.plain_flop == 10 * 4 * 9 + 10 * 9
    assert weights.device_bytes == 14 * 12 + 10 * 36
    dense = costs.inverse_distance_interpolation(10, 4, 5)
    assert dense.plain_flop == weights.plain_flop + 10 * 5 * 3 * 2
    assert dense.device_bytes == weights.device_bytes + 10 * 36 + 14 * 5 * 4
    rows = costs.pooled_interpolation_rows(10, 6, window=2)
    assert rows.plain_flop == 36
    assert rows.device_bytes == 10 * 36 + 6 * 2 * 8 + 36 * 8


def test_scoring_by_hand(costs):
    work = costs.nearest_neighbor_scoring(5, 7, 3, query_tile=4, num_splits=2)
    assert work.matrix_flop == 2 * 5 * 7 * 3
    assert work.plain_flop == 3 * 5 * 7 + 3 * 5 * 3
    assert work.device_bytes == 7 * 3 * 4 + 7 * 4 + 2 * 5 * 3 * 4 + 2 * 10 * 12
    assert work.l2_bytes == 2 * 7 * 3 * 4
    half = costs.nearest_neighbor_scoring(5, 7, 3, precision="float16", num_splits=2)
    assert work.device_bytes - half.device_bytes == 7 * 3 * 2


def test_the_coreset_reads_all_rows_in_every_step_but_the_last(costs):
    work = costs.k_center_greedy(10, 4, 5)
    assert work.plain_flop == 3 * 10 * (3 * 5 + 2)
    assert work.device_bytes == 3 * 10 * (5 * 4 + 8) + 4 * 8
    half = costs.k_center_greedy(10, 4, 5, precision="float16")
    assert work.device_bytes - half.device_bytes == 3 * 10 * 5 * 2


def test_mapping_by_hand(costs):
    work = costs.pixel_mapping(
        10, 4, 6, (2, 3, 3, 5), source_entries=4, target_entries=7, pixel_tile=4, output_tile=4
    )
    assert work.matrix_flop == 2 * (4 * 2 * 3 + 10 * (3 * 3 + 3 * 5))
    assert work.plain_flop == 10 * (2 * 4 * 3 + 14 * 6 + 2 * 7 * 5 + 6 * 5)
    # Weights for 3 tiles; rows mixed; activations of 3 to 3 outputs (1 tile) and 3 to 5 (2 tiles).
    assert work.l2_bytes == 4 * (3 * 24 + 10 * (4 * 3 + 7 * 5) + 10 * (3 * 2 + 3 * 3))
    assert work.device_bytes == 4 * (6 + 24 + 4 * (2 + 6) + 6 * 5 + 10) + 10 * 11 * 8


def test_products_of_the_published_pipeline_are_those_of_the_method_facts(page, detectors):
    card = page.BY_NAME[page.PUBLISHED_CARD]
    for name, total, blocks, point_blocks, mapping in (
        ("cfm", 451.5, 78.1, 31.4, 277.5),
        ("cfm-m", 415.0, 52.1, 20.9, 277.5),
        ("cfm-s", 378.5, 26.1, 10.5, 277.5),
        ("cfm-t", 173.6, 6.6, 2.6, 99.9),
    ):
        steps = detectors.published_steps(VARIANTS[name], card, num_points=14_049)
        gmac = {step: estimate.work.matrix_flop / 2e9 for step, estimate in steps.items()}
        # The facts count the patch embedding (0.1) and the position embedding (0.05) besides.
        assert gmac["RGB blocks"] == pytest.approx(blocks, abs=0.15)
        assert gmac["point blocks"] == pytest.approx(point_blocks, abs=0.1)
        assert gmac["mapping"] == pytest.approx(mapping, abs=0.1)
        assert gmac["point embedding"] == pytest.approx(64.5, abs=0.05)
        assert sum(gmac.values()) == pytest.approx(total, abs=0.4)


def test_the_composed_embedder_has_the_products_its_readme_says(costs):
    assert costs.point_embedding(1024, 128).matrix_flop / 2e9 == pytest.approx(41, abs=0.05)


def test_scoring_of_the_point_bank_is_that_of_the_method_facts(page, costs):
    gmac = [
        costs.nearest_neighbor_scoring(*sizes).matrix_flop / 2e9
        for sizes in page.M3DM_BANKS.values()
    ]
    assert gmac == pytest.approx([276, 4.6, 46], abs=0.5)


def test_a_step_takes_its_longest_part(detectors, page, costs):
    card = page.BY_NAME["RTX 4090"]
    memory = detectors.roofline(costs.Work("x", device_bytes=1008e9), card, "float32")
    assert (memory.seconds, memory.limit) == (pytest.approx(1), "memory")
    both = costs.Work("x", matrix_flop=165.2e12, plain_flop=82.6e12, device_bytes=1008e9)
    arithmetic = detectors.roofline(both, card, "float16")
    assert (arithmetic.seconds, arithmetic.limit) == (pytest.approx(2), "arithmetic")
    cache = detectors.roofline(costs.Work("x", l2_bytes=32 * 128 * 2.52e9), card, "float32")
    assert (cache.seconds, cache.limit) == (pytest.approx(1), "L2")


def test_sampling_takes_the_kernel_that_fits(detectors, page):
    ampere, hopper = page.BY_NAME["RTX 3060"], page.BY_NAME["H100 SXM"]
    assert detectors.sampling(ampere, 1_000_000, 1024).choice == "one block"
    assert detectors.sampling(hopper, 50_176, 1024).choice == "one block"
    assert detectors.sampling(hopper, 5_000_000, 1024).choice == "cluster of 8"
    # Four times the counted points: 3.2 leaves of the busiest warp, 310 + 275 + 1.2 * 50 clocks.
    step = detectors.sampling(page.BY_NAME["L4"], 4 * 13_811, 1000)
    assert step.seconds == pytest.approx(1000 * 645 / 2.04e9)
    # 1280 points on 128 lanes: 100 clocks of arithmetic and 430 of latency, 1000 times.
    published = detectors.published_sampling_seconds(page.BY_NAME["L4"], 1280, 1000)
    assert published == pytest.approx(1000 * 530 / 2.04e9)


def test_tiles_and_splits(detectors, page):
    hopper = page.BY_NAME["H100 SXM"]
    # 227 KiB / 2 hold 60 rows of 960 half floats, 30 of floats.
    scratch = 2 * hopper.multiprocessors * 2 * 64 * 960
    assert detectors.mapping_scratch_bytes(hopper, 960, "float32") == 4 * scratch
    assert detectors.mapping_scratch_bytes(hopper, 960, "float16") == 2 * scratch
    assert detectors.bank_splits(hopper, 3136, 76_518) == 11  # 25 tiles, 264 programs
    assert detectors.bank_splits(hopper, 1, 2_048) == 2  # no part below 1024 rows


def test_cards_agree_with_themselves(page):
    for card in page.CARDS:
        derived = card.multiprocessors * card.float32_lanes * 2 * card.clock_ghz / 1e3
        assert card.float32_tflops == pytest.approx(derived, rel=0.09), card.name
        assert card.float32_tflops <= card.tf32_tflops < card.float16_tflops
        assert card.source


def test_the_page_says_that_it_is_a_model_and_is_up_to_date(page, monkeypatch):
    text = page.render()
    assert "no figure on this page was measured" in text
    for line in text.splitlines():
        if line.startswith("## ") and line not in ("## Cards", "## Assumptions"):
            assert "MODEL" in line
    assert "21.755 fps" in text
    monkeypatch.setattr("sys.argv", ["gpu_cost_model.py", "--check"])
    assert write_pages("", page.render_pages) == 0
    monkeypatch.setattr(page, "render", lambda: "another page")
    assert write_pages("", page.render_pages) == 1
