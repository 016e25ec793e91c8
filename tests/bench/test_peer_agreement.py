"""How bench/ops compares results: ties are free, everything else is not."""

from __future__ import annotations

import numpy as np
import pytest
from ops import bench_farthest_point_sampling as sampling
from ops import bench_fpfh, bench_surface_normals
from ops import bench_nearest_neighbor_scoring as scoring
from ops import clouds as search
from ops.case import DisagreementError
from ops.cases import integer_cloud, uniform_cloud

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.nearest_neighbor_scoring import nearest_neighbor_scoring

SQUARE = np.float32([[0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 0], [1, 1, 0]])


def test_samples_from_the_same_point_or_from_another():
    points = uniform_cloud(300)
    ours = farthest_point_sampling(points, 40)
    assert sampling.agreement(ours.astype(np.uint64), points, ours).kind == "same indices"
    other = farthest_point_sampling(points, 40, start_index=7)
    kind = sampling.agreement(other, points, ours).kind
    assert kind == "same indices, from a first point of its own"


def test_samples_may_take_other_ties_and_nothing_else():
    ours = farthest_point_sampling(SQUARE, 4)
    np.testing.assert_array_equal(ours, [0, 3, 1, 2])
    found = sampling.agreement(np.array([0, 3, 2, 1]), SQUARE, ours)
    assert (found.kind, found.detail) == ("ties taken otherwise", "from sample 2")
    with pytest.raises(DisagreementError, match="from sample 1 on a chosen point is only 0.707"):
        sampling.agreement(np.array([0, 1, 2, 3]), SQUARE, ours)
    with pytest.raises(DisagreementError, match="from sample 3"):
        sampling.agreement(np.array([0, 3, 1, 1]), SQUARE, ours)


def test_samples_without_indices_are_compared_as_a_set():
    points = integer_cloud(50)
    ours = farthest_point_sampling(points, 9)
    assert sampling.agreement(points[ours[::-1]], points, ours).kind == "same points"
    with pytest.raises(DisagreementError, match="another set"):
        sampling.agreement(points[:9], points, ours)


def test_neighbours_may_take_other_ties_and_nothing_else():
    center = SQUARE[4:]
    ours = np.array([[4, 0, 1]])
    assert search.neighbor_agreement(ours, ours, SQUARE, center).kind == "same indices"
    tied = search.neighbor_agreement(np.array([[4, 3, 2]], np.uint32), ours, SQUARE, center)
    assert tied.detail == "2 of 3 indices differ"
    with pytest.raises(DisagreementError, match="differs by"):
        search.neighbor_agreement(np.array([[0, 4, 1]]), ours, SQUARE, center)
    moved = SQUARE.copy()
    moved[3] *= np.float32(1.01)
    with pytest.raises(DisagreementError, match="differs by"):
        search.neighbor_agreement(np.array([[4, 0, 3]]), ours, moved, center)


def test_scores_may_round_as_the_expanded_form_does():
    rng = np.random.default_rng(0)
    queries, bank = rng.standard_normal((2, 60, 32), np.float32)
    ours = nearest_neighbor_scoring(queries, bank)
    same = scoring.agreement(ours, ours, queries, bank)
    assert (same.kind, same.detail[:8]) == ("same indices", "60 of 60")
    other = (ours.distances * np.float32(1 + 1e-6), np.where(np.arange(60) == 3, -1, ours.indices))
    rounded = scoring.agreement(other, ours, queries, bank)
    assert rounded.kind == "same distances within float32"
    assert rounded.detail.startswith("59 of 60")
    with pytest.raises(DisagreementError, match="a squared distance differs"):
        scoring.agreement((ours.distances + 0.01, ours.indices), ours, queries, bank)


def test_cases_are_cut_evenly_out_of_the_features(tmp_path):
    rows = np.arange(12_000, dtype=np.float32)[:, None] * np.ones(5, np.float32)
    for name in ("bank", "queries"):
        np.save(tmp_path / f"{name}.npy", rows)
    queries, bank = scoring.arrays_of(tmp_path, 7_000, 4)
    assert (queries.shape, bank.shape) == ((3136, 4), (7_000, 4))
    assert (bank[0, 0], bank[-1, 0], queries[-1, 0]) == (0, 11_999, 11_999)
    assert len(np.unique(bank[:, 0])) == 7_000
    with pytest.raises(SystemExit, match="at least \\(7000, 6\\)"):
        scoring.arrays_of(tmp_path, 7_000, 6)


def test_normals_may_have_the_other_sign_and_nothing_else():
    ours = np.tile(np.float32([0, 0.6, 0.8]), (100, 1))
    assert (
        bench_surface_normals.agreement(-ours, ours).detail == "0.00% differ by more than 0.001 rad"
    )
    turned = ours.copy()
    turned[:5] = (0, 0.8, 0.6)
    with pytest.raises(DisagreementError, match="5.0% of the directions are others"):
        bench_surface_normals.agreement(turned, ours)
    with pytest.raises(DisagreementError, match="others"):
        bench_surface_normals.agreement(np.full_like(ours, np.nan), ours)


def test_features_may_see_ties_and_nothing_else():
    ours = np.full((100, 33), 200 / 11, np.float32)
    seen = ours.copy()
    seen[:40, 3] += 0.1
    kind, detail = vars(bench_fpfh.agreement(seen, ours)).values()
    assert kind == "same features but at ties"
    assert detail == "40.00% differ by more than 0.0001 of the sum, 0.00% by 0.01"
    seen[:6, 3] += 3
    with pytest.raises(DisagreementError, match="6.0% of the features are others"):
        bench_fpfh.agreement(seen, ours)
    with pytest.raises(DisagreementError, match="others"):
        bench_fpfh.agreement(np.full_like(ours, np.nan), ours)
