"""Patches come back from disk as they were given."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mmad_fast.errors import EmptyScanError, MmadFastError
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures
from mmad_fast.methods.m3dm.patch_store import ArrayFile, PatchStore
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
    with PatchStore(tmp_path) as store:
        for features in given:
            store.append(features)
        assert len(store) == 3
        for index in (2, 0, 1, 0):
            assert_same(store[index], given[index])
            assert store[index].fused_points is None
        assert len(list(store)) == 3


def test_only_the_named_fields_are_read(tmp_path: Path):
    with PatchStore(tmp_path) as store:
        store.append(patches(0, 5))
        found = store.read(0, names=("tokens",))
    assert found.tokens is not None
    assert found.point_rows is None
    assert found.patches is None


def test_fields_can_follow(tmp_path: Path):
    fused = [np.full((6, 3), index, np.float32) for index in range(2)]
    with PatchStore(tmp_path) as store:
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
    with PatchStore(tmp_path) as store:
        store.append(given)
        found = store[0].spread
    assert store._scans[0].tokens is None
    assert found is not None
    np.testing.assert_array_equal(found.pixel_indices, [7, 9])
    np.testing.assert_array_equal(found.rows.values, rows.values)
    np.testing.assert_array_equal(found.rows.columns, rows.columns)
    assert found.rows.num_columns == 6


def test_scans_without_foreground_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def fail() -> PatchFeatures:
        raise EmptyScanError("has 3 foreground points")

    calls: list[int] = []
    with PatchStore(tmp_path) as store, caplog.at_level(logging.WARNING, logger="mmad_fast"):
        store.extend(
            [("scan 'a'", fail), ("scan 'b'", lambda: patches(1, 5))], progress=calls.append
        )
        assert (len(store), store.positions, calls) == (1, [1], [1, 2])
        assert_same(store[0], patches(1, 5))
    assert "skipped scan 'a': has 3 foreground points" in caplog.text


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
