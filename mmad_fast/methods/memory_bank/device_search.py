"""The search in a memory bank on a CUDA device. Needs torch, whose tensors hold the arrays."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mmad_fast.methods.branches.device_stream import Tensor
from mmad_fast.methods.memory_bank import scoring
from mmad_fast.methods.memory_bank.search import Found, SearchBackends
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank, nearest_neighbor_scoring
from mmad_fast.stage_clock import StageClock

BLOCK_ROWS = 4096
"""Bank rows whose differences to one row are in memory at a time."""

NEIGHBOR_CANDIDATES = 16
"""Nearest rows by float32 distances that are measured again in float64."""


def search_device_bank(
    rows: Tensor,
    owner: Tensor,
    bank: PreparedBank,
    backends: SearchBackends,
    clock: StageClock,
    *,
    stage: str,
) -> Found:
    """As search.search_bank, of tensors on the device; does not wait for it."""
    with clock.stage(stage):
        nearest: tuple[Tensor, Tensor] = nearest_neighbor_scoring(
            rows, bank, backend=backends.scoring
        )
        distances = nearest[0][owner]  # (L,)
    with clock.stage("reweighting"):
        worst = owner.index_select(0, distances.argmax().view(1))  # of equals the first patch
        neighbor_distances = distances_to_neighbors(
            rows.index_select(0, worst), nearest[1].index_select(0, worst), bank.rows
        )
    return Found(distances, neighbor_distances)


def distances_to_neighbors(query: Tensor, nearest: Tensor, rows: Tensor) -> Tensor:
    """(K,) float64 distances of a query (1, C) to the other rows of a bank (M, C) that are nearest
    to its row `nearest` (1,); K is 2, or less in a bank of fewer others. Does not wait.

    The float32 distances choose candidates, float64 ones among these, of equals the lowest index.
    """
    row = rows.index_select(0, nearest).float()
    squared = torch.cat(
        [(block.float() - row).square_().sum(dim=1) for block in rows.split(BLOCK_ROWS)]
    )  # (M,)
    squared.index_fill_(0, nearest, torch.inf)
    num_candidates = min(NEIGHBOR_CANDIDATES, len(rows) - 1)
    candidates = squared.topk(num_candidates, largest=False).indices.sort().values
    others = rows.index_select(0, candidates).double()
    from_row = torch.linalg.vector_norm(others - row.double(), dim=1)
    chosen = from_row.sort(stable=True).indices[: scoring.NUM_NEIGHBORS]
    from_query = torch.linalg.vector_norm(others - query.double(), dim=1)
    return from_query.index_select(0, chosen)


def upload_bank(rows: NDArray, device: torch.device) -> Tensor:
    """A copy (M, C) on the device; rows that stay on disk are never in memory as a whole."""
    dtype = torch.float16 if rows.dtype == np.float16 else torch.float32
    bank = torch.empty(rows.shape, dtype=dtype, device=device)
    for first in range(0, len(rows), BLOCK_ROWS):
        block = np.array(rows[first : first + BLOCK_ROWS])
        bank[first : first + len(block)] = torch.from_numpy(block)
    return bank
