"""How the published M3DM code builds its memory banks and decision layer, in plain torch: every
dense row in memory, one step of the greedy after another. What a fit is compared with, on a small
set. Imports nothing from the fast code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import SGDOneClassSVM
from torch import Tensor

from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.methods.m3dm.reference import DensePatches
from mmad_fast.methods.memory_bank.reference import (
    CORESET_FRACTION,
    BankScores,
    project,
    reference_coreset,
)

LAMBDAS = {"point": 1.0, "rgb": 0.1, "fusion": 1.0}
"""Weights of the banks' scores and maps before the decision; method facts 5.1."""


@dataclass(frozen=True)
class ReferenceBanks:
    """The banks of a method.

    Attributes:
        rows: (M, C) normalised rows by bank.
        scales: (mean, std) by bank: a row is (x - mean) / std.
        chosen: (n,) int64 by bank: dense rows of all scans, in the order in which they were taken.
    """

    rows: Mapping[str, Tensor]
    scales: Mapping[str, tuple[float, float]]
    chosen: Mapping[str, Tensor]


@torch.inference_mode()
def reference_banks(
    scans: Sequence[DensePatches],
    options: M3dmOptions,
    *,
    coreset: str = "code",
    seed: int = 0,
) -> ReferenceBanks:
    """The banks of these training scans.

    Args:
        scans: Raw patches of each scan, float32.
        options: Of which banks and bank_norm are read.
        coreset: "code" or "paper", see `coreset_sizes`.
        seed: Of the random projection; the public code does not set one.

    Source: method facts 5.3, 5.6.
    """
    dense = {name: torch.cat([scan.banks[name] for scan in scans]) for name in options.banks}
    scales = bank_scales(dense, options.bank_norm)
    sizes = coreset_sizes({name: len(rows) for name, rows in dense.items()}, coreset)
    chosen, kept = {}, {}
    for name, rows in dense.items():
        mean, std = scales[name]
        normalised = (rows - mean) / std
        chosen[name] = reference_coreset(project(normalised, seed), sizes[name])
        kept[name] = normalised[chosen[name]]
    if len(dense) > 1 and "point" in kept:
        without_zeros = kept["point"][(kept["point"] != 0).all(dim=1)]
        zero = torch.zeros(1, without_zeros.shape[1], dtype=without_zeros.dtype)
        kept["point"] = torch.cat([without_zeros, zero])
    return ReferenceBanks(kept, scales, chosen)


def bank_scales(dense: Mapping[str, Tensor], bank_norm: str) -> dict[str, tuple[float, float]]:
    """(mean, std) by bank, over all elements of all dense rows.

    "published": with several banks the mean of the point bank and the std of the RGB bank for all;
    alone, the RGB bank has its own, the others none. "own": each bank its own.
    """
    own = {name: (float(rows.mean()), float(rows.std())) for name, rows in dense.items()}
    if bank_norm == "own" or tuple(dense) == ("rgb",):
        return own
    if len(dense) == 1:
        return dict.fromkeys(dense, (0.0, 1.0))
    return dict.fromkeys(dense, (own["point"][0], own["rgb"][1]))


def coreset_sizes(num_rows: Mapping[str, int], coreset: str) -> dict[str, int]:
    """Rows that each bank keeps. "paper": a tenth; "code": with several banks the others keep a
    tenth of what the point bank keeps."""
    tenths = {name: max(1, int(CORESET_FRACTION * rows)) for name, rows in num_rows.items()}
    if coreset == "paper" or len(num_rows) == 1:
        return tenths
    other = max(1, int(CORESET_FRACTION * tenths["point"]))
    return {name: tenths["point"] if name == "point" else other for name in num_rows}


@dataclass(frozen=True)
class ReferenceDecision:
    """Weights of the decision's two sums, as in M3dmOptions."""

    score_weights: Mapping[str, float]
    map_weights: Mapping[str, float]
    score_offset: float
    map_offset: float


def reference_decision(
    scans: Sequence[Mapping[str, BankScores]], decision: str, dlf_scores: str = "score_samples"
) -> ReferenceDecision:
    """The decision layer of what the banks say of the training scans.

    Args:
        scans: Of each training scan, what each bank says.
        decision: "sum": the lambdas; "svm": a linear one-class SVM of the scores, and one of all
            pixels of all maps, each fitted after the lambdas.
        dlf_scores: "score_samples" w.s as in the code, or "decision_function" w.s - offset.

    Source: M3DM section 3.4, algorithm 1; method facts 5.5.
    """
    names = list(scans[0])
    lambdas = np.array([LAMBDAS[name] for name in names])
    if decision == "sum":
        weights = dict(zip(names, lambdas.tolist(), strict=True))
        return ReferenceDecision(weights, weights, 0.0, 0.0)
    scores = np.array([[scan[name].score for name in names] for scan in scans])  # (T, banks)
    pixels = np.stack(
        [np.concatenate([scan[name].map.ravel() for scan in scans]) for name in names], axis=1
    )  # (T * S * S, banks)
    (score_weights, score_offset), (map_weights, map_offset) = (
        _one_class_svm(samples * lambdas, dlf_scores) for samples in (scores, pixels)
    )
    return ReferenceDecision(
        dict(zip(names, (score_weights * lambdas).tolist(), strict=True)),
        dict(zip(names, (map_weights * lambdas).tolist(), strict=True)),
        score_offset,
        map_offset,
    )


def _one_class_svm(samples: NDArray, dlf_scores: str) -> tuple[NDArray, float]:
    svm = SGDOneClassSVM(nu=0.5, max_iter=1000, random_state=42).fit(samples)
    return svm.coef_, 0.0 if dlf_scores == "score_samples" else -float(svm.offset_[0])
