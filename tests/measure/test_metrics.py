"""Metrics against hand-made cases, scikit-learn, and the published evaluation's known figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from mmad_fast.errors import InvalidInputError
from mmad_fast.measure.metrics import AUPRO_LIMITS, aupro, image_auroc, pixel_auroc


def one_row(nominal, *regions):
    """One map and mask of a single row: nominal scores, then each region after a nominal gap.

    The gap pixels belong to the nominal scores, so every gap takes one of them.
    """
    scores, mask = [], []
    nominal = list(nominal)
    for region in regions:
        scores += [*region, nominal.pop(0)]
        mask += [True] * len(region) + [False]
    scores += nominal
    mask += [False] * len(nominal)
    return [np.array([scores], np.float32)], [np.array([mask])]


# --- AUROC ---


def test_image_auroc_counts_the_pairs_in_the_right_order():
    # Pairs (anomalous > nominal): 0.9 beats 0.1 and 0.5; 0.5 beats 0.1 and ties 0.5: 3.5 of 4.
    assert image_auroc([0.1, 0.5, 0.9, 0.5], [0, 0, 1, 1]) == pytest.approx(3.5 / 4)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_image_auroc_of_one_class_is_none(labels):
    assert image_auroc([0.1, 0.2], labels) is None


def test_pixel_auroc_pools_the_pixels_of_all_scans():
    rng = np.random.default_rng(0)
    maps = [rng.random((5, 7)), rng.random((4, 3))]
    masks = [rng.random((5, 7)) > 0.7, np.zeros((4, 3), bool)]
    expected = roc_auc_score(
        np.concatenate([mask.ravel() for mask in masks]),
        np.concatenate([scores.ravel() for scores in maps]),
    )
    assert pixel_auroc(maps, masks) == pytest.approx(expected, abs=1e-12)


def test_pixel_auroc_without_anomalous_pixels_is_none():
    assert pixel_auroc([np.ones((2, 2))], [np.zeros((2, 2), bool)]) is None


# --- AUPRO by hand ---


def test_published_curve_by_hand():
    # Nominal 1..10 (n = 10); regions {10.5, 5.5} and {8.5}. num_thresholds = 4 gives positions
    # linspace(0, 9, 4, int) = 0, 3, 6, 9, thresholds 1, 4, 7, 10, FPR 0.9, 0.6, 0.3, 0.0.
    # Overlap strictly above: t=1: (1 + 1)/2 = 1; t=4: 1; t=7: (1/2 + 1)/2 = 0.75;
    # t=10: (1/2 + 0)/2 = 0.25. Curve: (0, .25) (.3, .75) (.6, 1) (.9, 1) (1, 1).
    # Area to 0.3: 0.3 * (.25 + .75)/2 = 0.15 -> 0.5. Area to 0.1: PRO(0.1) = .25 + .5/3 = 0.41667,
    # 0.1 * (.25 + .41667)/2 / 0.1 = 0.33333. To 1: .15 + .3*.875 + .3 + .1 = 0.8125.
    maps, masks = one_row(range(1, 11), [10.5, 5.5], [8.5])
    result = aupro(maps, masks, limits=(0.3, 0.1, 1.0), num_thresholds=4)
    assert list(result) == [0.3, 0.1, 1.0]
    assert result[0.3] == pytest.approx(0.5)
    assert result[0.1] == pytest.approx(1 / 3)
    assert result[1.0] == pytest.approx(0.8125)


def test_exact_curve_by_hand():
    # Same scores. Descending: 10.5 (PRO .25 at FPR 0), 10, 9 (FPR .2), 8.5 (PRO .75 at FPR .2),
    # 8, 7, 6 (FPR .5), 5.5 (PRO 1 at FPR .5), the rest. A staircase, no ties:
    # area to 0.3: .2*.25 + .1*.75 = 0.125 -> /0.3; to 0.1: .25; to 1: .05 + .3*.75 + .5*1 = 0.775.
    maps, masks = one_row(range(1, 11), [10.5, 5.5], [8.5])
    result = aupro(maps, masks, limits=(0.3, 0.1, 1.0), mode="exact")
    assert result[0.3] == pytest.approx(0.125 / 0.3)
    assert result[0.1] == pytest.approx(0.25)
    assert result[1.0] == pytest.approx(0.775)


def test_exact_ties_are_one_slanted_step():
    # Nominal 0, 1, 1, 2 and one region {1}: at score 1 FPR goes .25 -> .75 and PRO 0 -> 1 together.
    # Area to 1: .5 * .5 + .25 = 0.5; to 0.5: .25 * (0 + .5)/2 = 0.0625 -> 0.125.
    maps, masks = one_row([0, 1, 1, 2], [1])
    result = aupro(maps, masks, limits=(1.0, 0.5), mode="exact")
    assert result[1.0] == pytest.approx(0.5)
    assert result[0.5] == pytest.approx(0.125)


def test_published_overlap_is_strictly_above_the_threshold():
    # One region equal to the largest nominal score: it is above no earlier than the second largest.
    # n = 3, num 3: thresholds 1, 2, 3, FPR 2/3, 1/3, 0; PRO 1, 1, 0. To 1/3: (0 + 1)/2 = 0.5.
    maps, masks = one_row([1, 2, 3], [3])
    assert aupro(maps, masks, limits=(1 / 3,), num_thresholds=3)[1 / 3] == pytest.approx(0.5)


def test_regions_touching_at_a_corner_are_one():
    # Below FPR 1/5 only scores above 3 count. Diagonal neighbours {9, 1} and a lone {9}, joined:
    # (1/2 + 1)/2 = 0.75; taken as three regions they would give (1 + 0 + 1)/3.
    scores = np.array([[9, 2, 2, 9], [3, 1, 2, 2]], np.float32)
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]], np.uint8)
    assert aupro([scores], [mask], limits=(0.05,), mode="exact")[0.05] == pytest.approx(0.75)


def test_regions_weigh_the_same_whatever_their_size_or_scan():
    # A missed region of one pixel in one scan and a found one of 8 pixels in another: 1/2.
    found = np.full((4, 4), 5.0)
    found[:2] = 9.0
    missed = np.full((4, 4), 5.0)
    missed[0, 0] = 1.0
    mask_found, mask_missed = found > 8, missed < 2
    result = aupro([found, missed], [mask_found, mask_missed], limits=(0.3,), mode="exact")
    # 5.0 is tied among all nominal pixels: from (0, .5) straight to (1, .5), so .5 up to any limit.
    assert result[0.3] == pytest.approx(0.5)


def test_perfect_map():
    # Every anomalous pixel above every nominal one: exact 1; published 1, as PRO(0) = 1 too.
    mask = np.zeros((30, 30), bool)
    mask[5:9, 5:9] = True
    scores = np.where(mask, 2.0, np.random.default_rng(0).random((30, 30)))
    for mode in ("published", "exact"):
        assert all(v == pytest.approx(1) for v in aupro([scores], [mask], mode=mode).values())


def test_worst_map():
    # Every anomalous pixel below every nominal one: the curve stays at 0 until FPR 1.
    mask = np.zeros((30, 30), bool)
    mask[5:9, 5:9] = True
    scores = np.where(mask, -1.0, np.random.default_rng(0).random((30, 30)))
    result = aupro([scores], [mask], limits=(0.3, 1.0), mode="exact")
    assert result == {0.3: pytest.approx(0), 1.0: pytest.approx(0)}


def test_fewer_nominal_pixels_than_thresholds():
    # n = 2: positions repeat, which adds steps of no width. Thresholds 1 and 2, FPR .5 and 0,
    # region {1.5}: PRO(0) = 0, PRO(.5) = 1, PRO(1) = 1: area to 1 is .25 + .5.
    maps, masks = one_row([1, 2], [1.5])
    assert aupro(maps, masks, limits=(1.0,), num_thresholds=99)[1.0] == pytest.approx(0.75)


# --- AUPRO against scikit-learn: with one region, PRO is the true positive rate ---


def one_region(seed, *, decimals=None):
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 50), bool)
    mask[10:22, 20:35] = True
    scores = rng.normal(size=mask.shape) + 1.5 * mask
    return (scores if decimals is None else np.round(scores, decimals)), mask


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_exact_area_of_one_region_is_the_auroc(decimals):
    scores, mask = one_region(3, decimals=decimals)
    result = aupro([scores], [mask], limits=(1.0,), mode="exact")
    assert result[1.0] == pytest.approx(roc_auc_score(mask.ravel(), scores.ravel()), abs=1e-12)


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("limit", AUPRO_LIMITS)
def test_exact_partial_area_of_one_region_is_the_trapezoid_of_the_roc_curve(decimals, limit):
    scores, mask = one_region(4, decimals=decimals)
    rates, hits, _ = roc_curve(mask.ravel(), scores.ravel(), drop_intermediate=False)
    # The corners inside, and the interpolated one at the limit.
    inside = int(np.searchsorted(rates, limit, side="right"))
    step = (limit - rates[inside - 1]) / (rates[inside] - rates[inside - 1])
    at_limit = hits[inside - 1] + step * (hits[inside] - hits[inside - 1])
    area = trapezoid([*hits[:inside], at_limit], [*rates[:inside], limit])
    result = aupro([scores], [mask], limits=(limit,), mode="exact")
    assert result[limit] == pytest.approx(area / limit, abs=1e-12)


# --- AUPRO against the published figures of the resolution table ---


@pytest.fixture(scope="module")
def normal_scores():
    """One region of N(3, 1) scores in N(0, 1) nominal ones, about as many as one category has."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1000, 1200))
    mask = np.zeros(scores.shape, bool)
    mask[100:300, 100:400] = True  # 60,000 anomalous pixels, 1.14 million nominal ones
    scores[mask] += 3
    return scores, mask


# The sampling error of a PRO value is at most sqrt(0.25 / 60,000) = 0.002, of which 4 sigma and the
# table's rounding are 0.009. At 1 % half of the value hangs on the largest of a million nominal
# scores (4.8 +- 0.25), whose overlap is 0.036 -+ 0.02: another 0.02 with 99 thresholds.
@pytest.mark.parametrize(
    ("num_thresholds", "expected"),
    [
        (99, {0.3: 0.937, 0.1: 0.850, 0.05: 0.760, 0.01: 0.386}),
        (100, {0.3: 0.937, 0.1: 0.850, 0.05: 0.761, 0.01: 0.389}),
        (20001, {0.3: 0.946, 0.1: 0.875, 0.05: 0.810, 0.01: 0.630}),
    ],
)
def test_published_mode_has_the_resolution_of_the_published_evaluation(
    normal_scores, num_thresholds, expected
):
    scores, mask = normal_scores
    result = aupro([scores], [mask], num_thresholds=num_thresholds)
    for limit, value in expected.items():
        slack = 0.029 if limit == 0.01 and num_thresholds < 1000 else 0.009
        assert result[limit] == pytest.approx(value, abs=slack), limit


@pytest.mark.parametrize("limit", AUPRO_LIMITS)
def test_exact_mode_is_the_integral_of_the_true_curve(normal_scores, limit):
    scores, mask = normal_scores
    rates = (np.arange(200_000) + 0.5) / 200_000 * limit
    truth = norm.sf(norm.isf(rates) - 3).mean()  # midpoint rule
    result = aupro([scores], [mask], limits=(limit,), mode="exact")
    assert result[limit] == pytest.approx(truth, abs=0.008)  # 4 sigma of 0.002


def test_exact_mode_of_a_whole_category_of_noise():
    rng = np.random.default_rng(0)
    maps = [rng.random((224, 224), np.float32) for _ in range(60)]
    masks = [np.zeros((224, 224), bool) for _ in maps]
    for mask in masks[:40]:
        mask[50:80, 90:130] = True
    areas = aupro(maps, masks, mode="exact")
    for limit in AUPRO_LIMITS:  # scores that know nothing: the curve is the diagonal
        assert areas[limit] == pytest.approx(limit / 2, abs=0.005)


# --- laws ---


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    transform=st.sampled_from([np.exp, np.cbrt, np.arctan, lambda x: 3 * x - 7]),
    mode=st.sampled_from(["published", "exact"]),
)
def test_only_the_order_of_the_scores_counts(seed, transform, mode):
    rng = np.random.default_rng(seed)
    maps = rng.integers(-6, 7, (3, 8, 9)) / 2.0  # ties on purpose; steps far above rounding
    masks = rng.random((3, 8, 9)) > 0.8
    masks[0, 0, 0], masks[0, 0, 1] = True, False
    before = aupro(maps, masks, mode=mode)
    after = aupro(transform(maps), masks, mode=mode)
    assert list(after.values()) == pytest.approx(list(before.values()), abs=1e-12)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), mode=st.sampled_from(["published", "exact"]))
def test_the_order_of_scans_does_not_count_and_values_are_fractions(seed, mode):
    rng = np.random.default_rng(seed)
    maps, masks = rng.random((4, 6, 6)), rng.random((4, 6, 6)) > 0.85
    masks[0, 0, 0] = True
    forward, backward = (aupro(maps[::s], masks[::s], mode=mode) for s in (1, -1))
    assert list(forward.values()) == pytest.approx(list(backward.values()), abs=1e-12)
    assert all(0 <= value <= 1 for value in forward.values())


# --- undefined and wrong ---


def test_no_anomalous_region_is_none():
    result = aupro([np.ones((3, 3))], [np.zeros((3, 3), bool)])
    assert result == dict.fromkeys(AUPRO_LIMITS)


def test_no_nominal_pixel_is_none():
    assert aupro([np.ones((3, 3))], [np.ones((3, 3), bool)], limits=(0.3,)) == {0.3: None}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("metric", [aupro, pixel_auroc])
def test_scores_that_are_not_finite_are_refused(metric, bad):
    scores = np.zeros((3, 3))
    scores[1, 1] = bad
    with pytest.raises(InvalidInputError, match="anomaly map 1: 1 of 9 values are NaN or infinite"):
        metric([np.zeros((3, 3)), scores], [np.eye(3, dtype=bool)] * 2)


def test_an_image_score_that_is_nan_is_refused():
    with pytest.raises(InvalidInputError, match="scores: 1 of 2 values are NaN"):
        image_auroc([0.1, np.nan], [0, 1])


@pytest.mark.parametrize(
    ("maps", "masks", "words"),
    [
        ([np.zeros((3, 3))], [], "1 anomaly maps and 0 masks"),
        ([], [], "0 anomaly maps and 0 masks"),
        ([np.zeros((3, 3))], [np.zeros((3, 4), bool)], r"\(3, 3\) and its mask \(3, 4\)"),
        ([np.zeros((3, 3, 1))], [np.zeros((3, 3, 1), bool)], r"must be \(H, W\)"),
        ([np.zeros((3, 3))], [np.zeros((3, 3))], "mask 0 has dtype float64"),
    ],
)
def test_maps_and_masks_that_do_not_fit_are_refused(maps, masks, words):
    with pytest.raises(InvalidInputError, match=words):
        aupro(maps, masks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limits": (0.0,)}, r"limit is 0.0; .* in \(0, 1\]"),
        ({"limits": (1.5,)}, "limit is 1.5"),
        ({"mode": "official"}, "'official'; it must be 'published' or 'exact'"),
        ({"num_thresholds": 1}, "num_thresholds is 1"),
    ],
)
def test_wrong_options_are_refused(options, words):
    maps, masks = one_row([1, 2], [1.5])
    with pytest.raises(InvalidInputError, match=words):
        aupro(maps, masks, **options)


def test_scores_and_labels_of_different_lengths_are_refused():
    with pytest.raises(InvalidInputError, match="one score and one label per scan"):
        image_auroc([0.1, 0.2], [0])


def test_float_labels_are_refused():
    with pytest.raises(InvalidInputError, match="labels has dtype float64"):
        image_auroc([0.1, 0.2], [0.0, 1.0])
