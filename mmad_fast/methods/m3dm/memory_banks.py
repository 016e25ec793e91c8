"""What is M3DM's own about its memory banks: how they are scaled, how many rows each keeps, and the
zeros of the point bank."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.memory_bank.bank_rows import (
    NO_SCAN,
    BankRows,
    PatchRows,
    Scale,
    coreset_size,
    measure_rows,
)


def bank_scales(banks: Mapping[str, PatchRows], *, bank_norm: str) -> dict[str, Scale]:
    """(mean, std) by which the rows of each bank are normalised; (0, 1) where they are not.

    Args:
        banks: The raw patches of each bank that the detector has.
        bank_norm: "published": the mean of the point bank and the standard deviation of the RGB
            bank for several banks, its own for the RGB bank alone, none for the others. "own": each
            bank its own.

    Raises:
        MmadFastError: all elements of a bank are equal.

    Source: method facts 5.3 and 5.6; the maintainers of the public code say that the shared pair is
    meant.
    """
    if bank_norm == "own" or tuple(banks) == ("rgb",):
        scales = {name: measure_rows(scans) for name, scans in banks.items()}
    elif len(banks) == 1:
        scales = dict.fromkeys(banks, (0.0, 1.0))
    else:
        shared = (measure_rows(banks["point"])[0], measure_rows(banks["rgb"])[1])
        scales = dict.fromkeys(banks, shared)
    for name, (_, std) in scales.items():
        if not std > 0:
            raise MmadFastError(
                f"the features that the {name} bank is scaled by are all the same number, so there "
                "is nothing to compare; check the images and clouds of the training scans"
            )
    return scales


def coreset_sizes(num_rows: Mapping[str, int], *, coreset: str) -> dict[str, int]:
    """How many rows each bank keeps, at least 1.

    Args:
        num_rows: Patches of each bank; equal ones count.
        coreset: "code": a tenth of a single bank and of the point bank, and as many rows of the
            others as a tenth of the rows that the point bank keeps. "paper": a tenth of each.

    Source: M3DM, section 3.4 (banks built as PatchCore's), and the public code, method facts 5.3.
    """
    sizes = {name: coreset_size(number) for name, number in num_rows.items()}
    if coreset == "code" and len(sizes) > 1:
        reduced = coreset_size(sizes["point"])
        sizes = {name: size if name == "point" else reduced for name, size in sizes.items()}
    return sizes


def finish_point_bank(bank: BankRows) -> BankRows:
    """The point bank of a detector of several banks: without the rows that have a zero, and with
    one row of zeros at the end, which is no scan's.

    Source: the public code, which means to replace the background's rows. In normalised space the
    background is no row of zeros, so that both stay: method facts 5.3.
    """
    is_kept = (bank.rows != 0).all(axis=1)
    zeros = np.zeros((1, bank.rows.shape[1]), np.float32)
    return BankRows(
        np.concatenate([bank.rows[is_kept], zeros]), np.append(bank.scans[is_kept], NO_SCAN)
    )
