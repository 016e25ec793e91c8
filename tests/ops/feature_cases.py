"""Inputs in feature space that the tests and benchmarks of nearest_neighbor_scoring and
pixel_mapping share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.pixel_mapping import MappingNetwork, bilinear_rows
from mmad_fast.ops.sparse_rows import SparseRows

QUERY_BANK_SIZES = [  # (Q, M, C)
    (1, 1, 1),
    (1, 1025, 63),
    (7, 1, 3),
    (7, 63, 7),
    (63, 1025, 7),
    (65, 112, 48),
    (130, 113, 257),
    (1025, 63, 63),
]

CFM_SIZES = {"3 layers": (768, 960, 960, 1152), "tiny": (768, 576, 576, 1152)}


def queries_and_bank(
    num_queries: int, num_bank_rows: int, num_channels: int, *, seed: int = 0, offset: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Queries (Q, C) and bank (M, C) float32 in clusters, as features of similar parts are."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((max(1, num_bank_rows // 100), num_channels)) + offset

    def draw(count: int) -> NDArray[np.float32]:
        noise = 0.5 * rng.standard_normal((count, num_channels))
        return (centers[rng.integers(0, len(centers), count)] + noise).astype(np.float32)

    return draw(num_queries), draw(num_bank_rows)


def low_rank_queries_and_bank(
    num_queries: int, num_bank_rows: int, num_channels: int, *, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Queries (Q, C) and bank (M, C) float32 whose variance falls with the direction and which have
    a common offset, as those of a network's features do."""
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.standard_normal((num_channels, num_channels)))
    deviations = 10 / np.arange(1, num_channels + 1) ** 1.5
    rows = rng.standard_normal((num_queries + num_bank_rows, num_channels)) * deviations
    rows = (rows @ directions.T + 3).astype(np.float32)
    return rows[:num_queries], rows[num_queries:]


def mapping_network(sizes: tuple[int, ...], *, seed: int = 0) -> MappingNetwork:
    """Random layers whose activations keep their scale."""
    rng = np.random.default_rng(seed)
    pairs = list(pairwise(sizes))
    return MappingNetwork(
        tuple((rng.standard_normal((o, i)) / np.sqrt(i)).astype(np.float32) for i, o in pairs),
        tuple((0.3 * rng.standard_normal(o)).astype(np.float32) for _, o in pairs),
    )


def sparse_rows(
    num_rows: int, num_columns: int, *, max_entries: int, seed: int = 0, keep_empty: bool = False
) -> SparseRows:
    """Rows of 0 to max_entries (1 to max_entries without keep_empty) random positive weights."""
    rng = np.random.default_rng(seed)
    limit = min(max_entries, num_columns)
    lengths = rng.integers(0 if keep_empty else 1, limit + 1, num_rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    columns = [np.sort(rng.permutation(num_columns)[:length]) for length in lengths]
    flat = np.concatenate([*columns, np.empty(0, np.int64)]).astype(np.int32)
    values = rng.uniform(0.05, 1, len(flat)).astype(np.float32)
    return SparseRows(offsets, flat, values, num_columns)


@dataclass(frozen=True)
class MappingCase:
    """The arguments of one pixel_mapping call."""

    source_features: NDArray[np.float32]
    source_rows: SparseRows
    target_features: NDArray[np.float32]
    target_rows: SparseRows
    network: MappingNetwork

    @property
    def arguments(self) -> tuple:
        return (
            self.source_features,
            self.source_rows,
            self.target_features,
            self.target_rows,
            self.network,
        )


def mapping_case(
    num_pixels: int,
    *,
    sizes: tuple[int, ...] = (20, 33, 33, 17),
    token_grid: int = 5,
    num_groups: int = 40,
    max_entries: int = 9,
    keep_empty: bool = False,
    seed: int = 0,
) -> MappingCase:
    """Tokens on a grid against point groups, `num_pixels` pixels of a 224 x 224 map."""
    rng = np.random.default_rng(seed)
    pixels = np.sort(rng.choice(224 * 224, num_pixels, replace=False))
    return MappingCase(
        rng.standard_normal((token_grid**2, sizes[0])).astype(np.float32),
        bilinear_rows(pixels, token_grid=token_grid),
        rng.standard_normal((num_groups, sizes[-1])).astype(np.float32),
        sparse_rows(
            num_pixels, num_groups, max_entries=max_entries, seed=seed, keep_empty=keep_empty
        ),
        mapping_network(sizes, seed=seed),
    )
