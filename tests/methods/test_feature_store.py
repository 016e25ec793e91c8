"""Features come back as they were given, from memory and from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.feature_store import ArrayFile, FeatureStore
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures
from mmad_fast.ops.inverse_distance_interpolation import PooledRows
from mmad_fast.ops.sparse_rows import SparseRows


def patches(seed: int, num_rows: int) -> PatchFeatures:
    rng = np.random.default_rng(seed)
    return PatchFeatures(
        tokens=rng.normal(0, 1, (9, 4)).astype(np.float32),
        point_rows=rng.normal(0, 1, (num_rows, 3)).astype(np.float32),
        patches=np.sort(rng.choice(36, num_rows, replace=False)),
    )


def assert_same(found: PatchFeatures, given: PatchFeatures) -> None:
    for name in ("tokens", "point_rows", "patches"):
        wanted = getattr(given, name)
        np.testing.assert_array_equal(getattr(found, name), wanted)
        assert getattr(found, name).dtype == wanted.dtype


def test_scans_come_back_in_any_order(tmp_path: Path):
    given = [patches(0, 5), patches(1, 36), patches(2, 0)]
    with FeatureStore(tmp_path) as store:
        for features in given:
            store.append(features)
        assert len(store) == 3
        for index in (2, 0, 1, 0):
            assert_same(store[index], given[index])
            assert store[index].fused_points is None
        assert len(list(store)) == 3


@pytest.mark.parametrize("memory_limit_mib", [0.0, 1.0])
def test_halves_are_rounded_and_nothing_else_is(tmp_path: Path, memory_limit_mib: float):
    given = patches(0, 5)
    with FeatureStore(tmp_path, memory_limit_mib=memory_limit_mib, in_halves=True) as store:
        store.append(given)
        found = store[0]
        assert found.tokens.dtype == np.float16
        np.testing.assert_array_equal(found.tokens, given.tokens.astype(np.float16))
        np.testing.assert_array_equal(found.patches, given.patches)
        assert found.patches.dtype == np.int64
        given.tokens[0, 0] = 65520.0
        with pytest.raises(MmadFastError, match="'tokens' of a scan reach 65520, .*check the wei"):
            store.append(given)


@pytest.mark.parametrize("memory_limit_mib", [0.0, 1.0])
def test_scans_that_are_set_aside_are_in_the_other_store_only(
    tmp_path: Path, memory_limit_mib: float
):
    given = [patches(seed, 5) for seed in range(4)]
    with FeatureStore(tmp_path, memory_limit_mib=memory_limit_mib) as store:
        store.skip()
        for features in given:
            store.append(features)
        aside = store.set_aside([3, 1])
        assert (store.positions, aside.positions) == ([1, 3], [2, 4])
        fused = np.full((6, 3), 7, np.float32)
        aside.add(1, fused_points=fused)
        for kept, wanted in ((store, (0, 2)), (aside, (1, 3))):
            assert len(kept) == 2
            for features, index in zip(kept, wanted, strict=True):
                assert_same(features, given[index])
        np.testing.assert_array_equal(aside[1].fused_points, fused)
        assert store[1].fused_points is None


def test_only_the_named_fields_are_read(tmp_path: Path):
    with FeatureStore(tmp_path) as store:
        store.append(patches(0, 5))
        found = store.read(0, names=("tokens",))
    assert found.tokens is not None
    assert found.point_rows is None
    assert found.patches is None


def test_fields_can_follow(tmp_path: Path):
    fused = [np.full((6, 3), index, np.float32) for index in range(2)]
    with FeatureStore(tmp_path) as store:
        store.append(patches(0, 5))
        store.append(patches(1, 5))
        for index in (0, 1):
            store.add(index, fused_points=fused[index])
        for index in (0, 1):
            np.testing.assert_array_equal(store[index].fused_points, fused[index])
            assert_same(store[index], patches(index, 5))


def test_groups_keep_how_they_spread(tmp_path: Path):
    rows = SparseRows(
        np.array([0, 2, 3]), np.array([0, 4, 2], np.int32), np.float32([0.5, 0.5, 1.0]), 6
    )
    given = PatchFeatures(None, np.eye(6, dtype=np.float32), np.arange(6))
    given = PatchFeatures(
        None, given.point_rows, given.patches, spread=PooledRows(rows, np.array([7, 9]))
    )
    with FeatureStore(tmp_path) as store:
        store.append(given)
        found = store[0].spread
    assert store._scans[0].tokens is None
    assert found is not None
    np.testing.assert_array_equal(found.pixel_indices, [7, 9])
    np.testing.assert_array_equal(found.rows.values, rows.values)
    np.testing.assert_array_equal(found.rows.columns, rows.columns)
    assert found.rows.num_columns == 6


def test_skipped_scans_are_counted(tmp_path: Path):
    with FeatureStore[PatchFeatures](tmp_path) as store:
        store.skip()
        store.append(patches(1, 5))
        store.skip()
        store.append(patches(2, 5))
        assert (len(store), store.positions) == (2, [1, 3])
        assert_same(store[0], patches(1, 5))
        assert_same(store[1], patches(2, 5))


def num_bytes(features: PatchFeatures) -> int:
    return sum(getattr(features, name).nbytes for name in ("tokens", "point_rows", "patches"))


def test_features_up_to_the_limit_stay_in_memory(tmp_path: Path):
    given = [patches(0, 5), patches(1, 36), patches(2, 5), patches(3, 5)]
    # The second does not fit beside the first; the third does, and leaves too little for the last.
    limit_mib = (num_bytes(given[0]) + num_bytes(given[2])) / 2**20
    with FeatureStore[PatchFeatures](tmp_path, memory_limit_mib=limit_mib) as store:
        for features in given:
            store.append(features)
        for index, features in enumerate(given):
            assert_same(store[index], features)
            in_memory = store[index].tokens is features.tokens
            assert in_memory == (index in (0, 2))
        on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
        assert on_disk == num_bytes(given[1]) + num_bytes(given[3])
        store.add(0, fused_points=np.ones((6, 3), np.float32))
        np.testing.assert_array_equal(store[0].fused_points, np.ones((6, 3)))
        assert_same(store[0], given[0])


def test_all_arrays_count_for_the_limit(tmp_path: Path):
    """Those of sparse rows, too, which are most of a scan's."""
    rows = SparseRows(
        np.array([0, 2**18]), np.zeros(2**18, np.int32), np.zeros(2**18, np.float32), 6
    )  # 2 MiB
    given = PatchFeatures(
        None,
        np.eye(6, dtype=np.float32),
        np.arange(6),
        spread=PooledRows(rows, np.array([7])),
    )
    for limit_mib, in_memory in ((1.9, False), (2.1, True)):
        with FeatureStore[PatchFeatures](tmp_path, memory_limit_mib=limit_mib) as store:
            store.append(given)
            assert (store[0].point_rows is given.point_rows) == in_memory
            found = store[0].spread
        assert found is not None
        np.testing.assert_array_equal(found.rows.columns, rows.columns)


def test_no_file_is_made_for_what_is_in_memory(tmp_path: Path):
    with FeatureStore[PatchFeatures](tmp_path / "new", memory_limit_mib=1) as store:
        store.append(patches(0, 5))
        assert not list((tmp_path / "new").iterdir())


def test_arrays_of_another_width_are_refused(tmp_path: Path):
    with ArrayFile(tmp_path / "a") as file:
        file.append(np.zeros((2, 3), np.float32))
        with pytest.raises(ValueError, match=r"holds float32 rows of \(3,\), got float32"):
            file.append(np.zeros((2, 4), np.float32))
        with pytest.raises(ValueError, match="got float64"):
            file.append(np.zeros((2, 3)))


def test_all_rows_can_be_mapped(tmp_path: Path):
    parts: list[NDArray] = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 3), "f4")]
    with ArrayFile(tmp_path / "a") as file:
        for part in parts:
            file.append(part)
        mapped = file.mapped()
    np.testing.assert_array_equal(mapped, np.concatenate(parts))
    assert not mapped.flags.writeable


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path: Path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with (
        ArrayFile(full) as file,
        pytest.raises(MmadFastError, match=r"/dev/full: .*No space left.*set TMPDIR"),
    ):
        file.append(np.zeros((4096, 64), np.float32))
