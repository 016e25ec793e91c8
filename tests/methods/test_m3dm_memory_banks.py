"""What is M3DM's own about its memory banks."""

from __future__ import annotations

import numpy as np
import pytest

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.m3dm.memory_banks import bank_scales, coreset_sizes, finish_point_bank
from mmad_fast.methods.memory_bank.bank_rows import NO_SCAN, SHARED, BankRows, ScanRows


def normal_rows(mean: float, std: float) -> list[ScanRows]:
    """Two scans whose elements have exactly this mean and unbiased standard deviation."""
    rows = np.random.default_rng(3).normal(0, 1, (4, 5)).astype(np.float32)
    rows = (rows - rows.mean(dtype=np.float64)) / rows.std(dtype=np.float64, ddof=1) * std + mean
    halves = rows.astype(np.float32)[:2], rows.astype(np.float32)[2:]
    return [ScanRows(half, np.ones(2, np.int64)) for half in halves]


POINT, RGB, FUSION = normal_rows(0.5, 2), normal_rows(-1, 3), normal_rows(0.1, 1.5)


@pytest.mark.parametrize(
    ("banks", "bank_norm", "scales"),
    [
        (
            {"point": POINT, "rgb": RGB, "fusion": FUSION},
            "published",
            {"point": (0.5, 3.0), "rgb": (0.5, 3.0), "fusion": (0.5, 3.0)},
        ),
        ({"point": POINT, "rgb": RGB}, "published", {"point": (0.5, 3.0), "rgb": (0.5, 3.0)}),
        ({"rgb": RGB}, "published", {"rgb": (-1.0, 3.0)}),
        ({"point": POINT}, "published", {"point": (0.0, 1.0)}),
        ({"fusion": FUSION}, "published", {"fusion": (0.0, 1.0)}),
        ({"point": POINT, "rgb": RGB}, "own", {"point": (0.5, 2.0), "rgb": (-1.0, 3.0)}),
        ({"fusion": FUSION}, "own", {"fusion": (0.1, 1.5)}),
    ],
)
def test_scales(banks, bank_norm, scales):
    found = bank_scales(banks, bank_norm=bank_norm)
    assert list(found) == list(scales)
    for name, scale in scales.items():
        assert found[name] == pytest.approx(scale, rel=1e-6)


def test_constant_features_are_an_error():
    blank = [ScanRows(np.full((3, 4), 0.3, np.float32), np.ones(3, np.int64))]
    with pytest.raises(MmadFastError, match="the rgb bank is scaled by are all the same.*check"):
        bank_scales({"rgb": blank}, bank_norm="published")


@pytest.mark.parametrize(
    ("num_rows", "coreset", "sizes"),
    [
        # Bagel's 244 scans, method facts 5.3.
        (
            {"point": 765184, "rgb": 191296, "fusion": 765184},
            "code",
            {"point": 76518, "rgb": 7651, "fusion": 7651},
        ),
        (
            {"point": 765184, "rgb": 191296, "fusion": 765184},
            "paper",
            {"point": 76518, "rgb": 19129, "fusion": 76518},
        ),
        ({"rgb": 191296}, "code", {"rgb": 19129}),
        ({"fusion": 3136}, "code", {"fusion": 313}),
        ({"point": 8, "rgb": 8}, "code", {"point": 1, "rgb": 1}),
    ],
)
def test_coreset_sizes(num_rows, coreset, sizes):
    assert coreset_sizes(num_rows, coreset=coreset) == sizes


def test_rows_with_a_zero_leave_the_point_bank_and_zeros_come_in():
    rows = np.array([[1, 2], [0, 3], [4, 5], [0, 0]], np.float32)
    bank = finish_point_bank(BankRows(rows, np.array([0, 1, SHARED, 0])))
    np.testing.assert_array_equal(bank.rows, [[1, 2], [4, 5], [0, 0]])
    np.testing.assert_array_equal(bank.scans, [0, SHARED, NO_SCAN])
