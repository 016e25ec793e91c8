"""What a memory bank says of a scan's patches: nearest rows, image score and map. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.methods.memory_bank import scoring
from mmad_fast.methods.memory_bank.options import BANK_PREFIX, BankOptions
from mmad_fast.ops.inverse_distance_interpolation import PooledRows
from mmad_fast.ops.nearest_neighbor_scoring import (
    NEAREST_ROWS_OP,
    OP,
    PreparedBank,
    nearest_neighbor_scoring,
    nearest_rows,
)
from mmad_fast.stage_clock import StageClock


class BankScores(NamedTuple):
    """What one memory bank says of a scan, before it is weighted.

    Attributes:
        score: The re-weighted largest distance.
        anomaly_map: (S, S) float32 blurred distances, >= 0.
    """

    score: float
    anomaly_map: NDArray[np.float32]


class Found(NamedTuple):
    """What the search in one bank found; tensors where that is on a device.

    Attributes:
        distances: (L,) of the patches to their nearest rows.
        neighbor_distances: (K,) float64 distances of the patch that is farthest from the bank to
            the nearest neighbours of its nearest row; K is 2, or less in a bank of fewer others.
    """

    distances: Any
    neighbor_distances: Any


class Float64Bank(PreparedBank):
    """A bank whose distances are measured in float64. Which row is nearest, float32 values decide:
    of rows that differ by less than their rounding either may be taken.

    Attributes:
        exact_rows: (M, C) float64.
    """

    def __init__(self, bank: NDArray[np.float64]) -> None:
        """Takes bank (M, C), finite."""
        super().__init__(bank.astype(np.float32))
        self.exact_rows = bank


@dataclass(frozen=True)
class SearchBackends:
    """The backend of each op by name: chosen when a detector is made, not anew for every scan."""

    scoring: str
    neighbors: str

    @classmethod
    def resolve(cls, *, device: str = "cpu") -> SearchBackends:
        """The first of each op that can run on the device ("cpu" or "cuda").

        Raises:
            BackendUnavailableError: an op has none.
        """
        return cls(OP.resolve(device=device).name, NEAREST_ROWS_OP.resolve().name)


def search_bank(
    rows: NDArray[np.float32] | NDArray[np.float64],
    owner: NDArray[np.int64],
    bank: PreparedBank,
    backends: SearchBackends,
    clock: StageClock,
    *,
    stage: str,
) -> Found:
    """The patches' distances to a bank, and what the farthest one is re-weighted by.

    Args:
        rows: (Q, C) float32 distinct rows among the patches, scaled as the bank is; of a
            Float64Bank float64.
        owner: (L,) int64: patch l has the features of row owner[l].
        bank: The bank (M, C).
        backends: Of the ops.
        clock: Gets the time of the search under `stage`, and that of "reweighting".
        stage: Name of the search.
    """
    bank_rows: NDArray = bank.exact_rows if isinstance(bank, Float64Bank) else bank.rows
    with clock.stage(stage):
        found = nearest_neighbor_scoring(
            rows.astype(np.float32, copy=False), bank, backend=backends.scoring
        )
        distances = found.distances
        if isinstance(bank, Float64Bank):
            distances = np.linalg.norm(rows - bank_rows[found.indices], axis=1).astype(np.float32)
        distances = distances[owner]  # (L,), dense
    with clock.stage("reweighting"):
        worst = owner[distances.argmax()]  # of equals the first patch
        nearest = int(found.indices[worst])
        others = nearest_rows(
            bank.rows[nearest],
            bank,
            count=scoring.NUM_NEIGHBORS,
            exclude=nearest,
            backend=backends.neighbors,
        ).indices
        return Found(distances, scoring.distances_to(rows[worst], bank_rows[others]))


def weigh(
    found: Found,
    options: BankOptions,
    *,
    num_channels: int,
    spread: PooledRows | None = None,
    values: NDArray[np.float32] | None = None,
) -> BankScores:
    """The score and map of what was found in a bank (M, C); on the host.

    Args:
        found: NumPy arrays.
        options: Of the detector.
        num_channels: C.
        spread: Which pixels of the map mix the patches' distances, and how; None where the patches
            are a grid.
        values: (P,) the pixels' values, where they are mixed already.
    """
    distances = found.distances
    score = scoring.reweight(
        float(distances.max()),
        found.neighbor_distances,
        num_channels=num_channels,
        reweighting=options.reweighting,
        weight_epsilon=options.weight_epsilon,
        distance_divisor=options.distance_divisor,
    )
    size = options.grid_size
    if spread is None:
        side = math.isqrt(len(distances))
        distance_map = scoring.upsample(distances.reshape(side, side), size)
    else:
        distance_map = np.zeros((size, size), np.float32)
        mixed = spread.rows.apply(distances[:, None])[:, 0] if values is None else values
        distance_map.ravel()[spread.pixel_indices] = mixed
    return BankScores(score, scoring.blur(distance_map, blur=options.blur))


def read_bank(artifact: Artifact, name: str, *, num_channels: int, dtype: str) -> NDArray:
    """The rows (M, C) of a memory bank; they stay on disk.

    Args:
        artifact: It has the tensor.
        name: Of the bank.
        num_channels: C of the patches.
        dtype: That the options say.

    Raises:
        ArtifactError: it is missing, or of another type or width.
    """
    rows = artifact.tensors()[BANK_PREFIX + name]
    if rows.dtype != dtype:
        raise ArtifactError(
            f"{artifact.path}: the bank {name!r} is {rows.dtype}, the manifest's parameters "
            f"say {dtype}; fit the detector again"
        )
    if rows.ndim != 2 or rows.shape[1] != num_channels:
        raise ArtifactError(
            f"{artifact.path}: the bank {name!r} has shape {rows.shape}, its patches have "
            f"{num_channels} channels; fit the detector again"
        )
    return rows


def prepare_bank(rows: NDArray) -> PreparedBank:
    """The bank of rows (M, C) of any type that banks have, not yet measured.

    Raises:
        InvalidInputError: a row is not finite.
    """
    return Float64Bank(rows) if rows.dtype == np.float64 else PreparedBank(rows)


def open_bank(artifact: Artifact, name: str, *, num_channels: int, dtype: str) -> PreparedBank:
    """A memory bank as `read_bank` gives it, checked, not yet measured.

    Raises:
        ArtifactError: as `read_bank`, or it is damaged.
    """
    rows = read_bank(artifact, name, num_channels=num_channels, dtype=dtype)
    try:
        return prepare_bank(rows)
    except InvalidInputError as error:
        raise ArtifactError(
            f"{artifact.path}: the bank {name!r} cannot be searched ({error}); fit the "
            "detector again"
        ) from error


def normalize_rows(rows: NDArray[np.float32], scale: tuple[float, float]) -> NDArray[np.float32]:
    """(Q, C) float32: (rows - mean) / std, as banks are stored; the rows themselves for (0, 1)."""
    mean, std = np.float32(scale[0]), np.float32(scale[1])
    if mean == 0 and std == 1:
        return rows
    normalized = rows - mean
    normalized /= std
    return normalized
