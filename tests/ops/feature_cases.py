"""Inputs in feature space that the tests of nearest_neighbor_scoring and pixel_mapping
share."""

from __future__ import annotations

import numpy as np
from ops.inputs import MappingCase as MappingCase
from ops.inputs import low_rank_queries_and_bank as low_rank_queries_and_bank
from ops.inputs import mapping_network as mapping_network
from ops.inputs import queries_and_bank as queries_and_bank

from mmad_fast.ops.pixel_mapping import bilinear_rows
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
