"""Frozen features of a set of scans, extracted once: what the mapping networks are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmad_fast.methods.cfm.detector import CfmFeatures
from mmad_fast.methods.scan_cache import ScanCache
from mmad_fast.ops.sparse_rows import SparseRows

DEFAULT_MEMORY_LIMIT_MIB = 2048.0
"""About 200 scans of a full-size CFM; what exceeds it goes to disk."""


class FeatureCache(ScanCache[CfmFeatures]):
    """The features of scans, in memory up to a limit and memory-mapped files beyond it."""

    def __init__(
        self, directory: Path, *, memory_limit_mib: float = DEFAULT_MEMORY_LIMIT_MIB
    ) -> None:
        """An empty cache that puts what exceeds the limit into `directory`, which must exist."""
        super().__init__()
        self._features: list[CfmFeatures] = []
        self._directory = directory
        self._bytes_left = memory_limit_mib * 2**20

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> CfmFeatures:
        return self._features[index]

    def __iter__(self) -> Iterator[CfmFeatures]:
        return iter(self._features)

    def append(self, features: CfmFeatures) -> None:
        """Keeps the features of a scan, in memory if they fit under the limit, else on disk."""
        arrays = _to_arrays(features)
        size = sum(array.nbytes for array in arrays.values())
        if size <= self._bytes_left:
            self._bytes_left -= size
        else:
            stem = self._directory / f"scan{len(self):06d}"
            features = _from_arrays(
                {key: _to_disk(array, stem, key) for key, array in arrays.items()},
                features.token_rows.num_columns,
                features.point_rows.num_columns,
            )
        self._features.append(features)


def _to_arrays(features: CfmFeatures) -> dict[str, NDArray]:
    arrays = {}
    for field in fields(CfmFeatures):
        value = getattr(features, field.name)
        if isinstance(value, SparseRows):
            for part in ("offsets", "columns", "values"):
                arrays[f"{field.name}.{part}"] = getattr(value, part)
        else:
            arrays[field.name] = value
    return arrays


def _from_arrays(arrays: dict[str, NDArray], num_tokens: int, num_groups: int) -> CfmFeatures:
    def rows(name: str, num_columns: int) -> SparseRows:
        offsets, columns, values = (
            arrays[f"{name}.{part}"] for part in ("offsets", "columns", "values")
        )
        return SparseRows(offsets, columns, values, num_columns)

    return CfmFeatures(
        tokens=arrays["tokens"],
        token_rows=rows("token_rows", num_tokens),
        point_features=arrays["point_features"],
        point_rows=rows("point_rows", num_groups),
        pixel_indices=arrays["pixel_indices"],
    )


def _to_disk(array: NDArray, stem: Path, key: str) -> NDArray:
    file = stem.with_name(f"{stem.name}.{key}.npy")
    np.save(file, array)
    return np.load(file, mmap_mode="r")
