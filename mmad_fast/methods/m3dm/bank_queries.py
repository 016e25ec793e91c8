"""The features of a scan's patches, and the distinct rows among them that a memory bank is asked
for. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.ops.inverse_distance_interpolation import PooledRows


@dataclass(frozen=True)
class PatchFeatures:
    """The features of a scan's patches, those of background patches left out. On a CUDA device all
    arrays but `patches` are tensors, and the point rows end with the background's zeros.

    Attributes:
        tokens: (T, C2) float32 RGB tokens, row-major; None where no bank reads them.
        point_rows: (P, C3) float32 point features of the foreground patches, raw; None where no
            bank reads them. A background patch has zeros.
        patches: (P,) int64 row-major patch index of each point row, ascending; with
            point_patches="groups" simply 0 .. G - 1.
        fused_points: (P + 1, C3) float32 what the feature fusion makes of the point rows, and last
            of zeros, the background; None without feature fusion.
        fused_tokens: (T, C2) float32 what it makes of the tokens; None without.
        spread: With point_patches="groups": how each foreground pixel of the map mixes the groups'
            distances; else None.
    """

    tokens: NDArray[np.float32] | None
    point_rows: NDArray[np.float32] | None
    patches: NDArray[np.int64]
    fused_points: NDArray[np.float32] | None = None
    fused_tokens: NDArray[np.float32] | None = None
    spread: PooledRows | None = None


class DistinctRows(NamedTuple):
    """Which rows a bank is asked for, and which patch has which of them.

    Attributes:
        point_index: (Q,) int64 into the point rows, P being the background's row of zeros; None
            where the bank holds no point features.
        token_index: (Q,) int64 into the tokens; None where it holds none of RGB.
        owner: (L,) int64: patch l has the features of row owner[l]. L is T for the rgb bank, else
            the number of point patches (H * W, or G).
    """

    point_index: NDArray[np.int64] | None
    token_index: NDArray[np.int64] | None
    owner: NDArray[np.int64]


class BankQueries(NamedTuple):
    """What is searched in one memory bank: the distinct rows among a scan's patches.

    Attributes:
        rows: (Q, C) float32, raw: not normalised. A new array or the features' own; not to be
            changed.
        owner: (L,) int64, as in DistinctRows.
    """

    rows: NDArray[np.float32]
    owner: NDArray[np.int64]


def distinct_rows(patches: NDArray[np.int64], options: M3dmOptions, bank: str) -> DistinctRows:
    """Which rows a bank is asked for; depends on the foreground patches alone.

    point: the point rows in their order, and zeros for the background where there is any. rgb: the
    tokens. fusion: the foreground patches, each its point row beside its token, then zeros beside
    each token that has a background patch.

    Args:
        patches: (P,) int64 foreground patches, as in PatchFeatures.
        options: Of the detector.
        bank: One of options.BANKS.
    """
    if bank == "rgb":
        tokens = np.arange(options.token_grid**2)
        return DistinctRows(None, tokens, tokens)
    num_rows, patch_grid = len(patches), options.patch_grid
    if patch_grid is None:
        return DistinctRows(np.arange(num_rows), None, np.arange(num_rows))
    is_background = np.ones(patch_grid**2, bool)
    is_background[patches] = False
    owner = np.full(patch_grid**2, num_rows)
    owner[patches] = np.arange(num_rows)
    if bank == "point":
        return DistinctRows(np.arange(num_rows + bool(is_background.any())), None, owner)
    token_of_patch = tokens_of_patches(patch_grid, options.token_grid)
    background_tokens, place = np.unique(token_of_patch[is_background], return_inverse=True)
    owner[is_background] = num_rows + place
    return DistinctRows(
        np.concatenate([np.arange(num_rows), np.full(len(background_tokens), num_rows)]),
        np.concatenate([token_of_patch[patches], background_tokens]),
        owner,
    )


def bank_queries(features: PatchFeatures, options: M3dmOptions, bank: str) -> BankQueries:
    """The distinct rows (Q, C) that a bank is asked for, as `distinct_rows` says.

    Those of the fusion bank are [point part | RGB part], both as the feature fusion makes them
    where there is one.

    Args:
        features: Of one scan; what the bank reads is not None.
        options: Of the detector.
        bank: One of options.BANKS.
    """
    point_index, token_index, owner = distinct_rows(features.patches, options, bank)
    if point_index is None:
        assert features.tokens is not None
        return BankQueries(features.tokens, owner)
    points, tokens = features.point_rows, features.tokens
    if bank == "fusion" and options.uses_uff:
        points, tokens = features.fused_points, features.fused_tokens
    elif points is not None and len(points) < len(owner):
        background = np.zeros((1, points.shape[1]), np.float32)
        points = np.concatenate([points, background])  # (P + 1, C3)
    assert points is not None
    if token_index is None:
        return BankQueries(points, owner)
    assert tokens is not None
    num_channels = points.shape[1]
    rows = np.empty((len(point_index), num_channels + tokens.shape[1]), np.float32)
    rows[:, :num_channels] = points[point_index]
    rows[:, num_channels:] = tokens[token_index]
    return BankQueries(rows, owner)


def tokens_of_patches(patch_grid: int, token_grid: int) -> NDArray[np.int64]:
    """(H * W,) the RGB token of each patch: H = W = `patch_grid` is a multiple of `token_grid`, and
    the adaptive average over tokens is then an exact replication."""
    line = np.arange(patch_grid) * token_grid // patch_grid
    return (line[:, None] * token_grid + line).ravel()
