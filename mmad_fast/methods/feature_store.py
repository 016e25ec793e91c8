"""The features of a set of scans, extracted once: what memory banks and networks are made from."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import MmadFastError
from mmad_fast.ops.inverse_distance_interpolation import PooledRows
from mmad_fast.ops.sparse_rows import SparseRows

Features = TypeVar("Features")
"""A dataclass of arrays, SparseRows and PooledRows, each of which may be None."""

FeaturesRead = TypeVar("FeaturesRead", covariant=True)

_ROW_ARRAYS = ("offsets", "columns", "values")


class ScanFeatures(Protocol[FeaturesRead]):
    """The features of scans: a list of them, or a FeatureStore."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> FeaturesRead: ...

    def __iter__(self) -> Iterator[FeaturesRead]: ...


class ArrayFile:
    """Arrays of the same width and type in one file, one after the other; written, then read.

    They are read, not mapped, so that the memory of a process does not grow with what it has read.
    """

    def __init__(self, path: Path) -> None:
        """An empty file at `path`; what is there is overwritten.

        Raises:
            MmadFastError: it cannot be made.
        """
        self._path = path
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._offsets = [0]
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.float32)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, array: NDArray) -> None:
        """Writes an array (R, ...); all have the trailing shape and type of the first.

        Raises:
            MmadFastError: the disk is full.
            ValueError: another trailing shape or type than the first one's.
        """
        if not len(self):
            self._shape, self._dtype = array.shape[1:], array.dtype
        if (array.shape[1:], array.dtype) != (self._shape, self._dtype):
            raise ValueError(
                f"{self._path.name} holds {self._dtype} rows of {self._shape}, got {array.dtype} "
                f"rows of {array.shape[1:]}"
            )
        try:
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        self._offsets.append(self._offsets[-1] + len(array))

    def read(self, index: int) -> NDArray:
        """The array that was appended as number `index`."""
        start, stop = self._offsets[index : index + 2]
        row_size = int(np.prod(self._shape, dtype=np.int64))
        flat = np.fromfile(
            self._path,
            self._dtype,
            count=(stop - start) * row_size,
            offset=start * row_size * self._dtype.itemsize,
        )
        return flat.reshape(stop - start, *self._shape)

    def mapped(self) -> NDArray:
        """All rows of all arrays, read-only, as a map of the file; there must be one."""
        shape = (self._offsets[-1], *self._shape)
        return np.asarray(np.memmap(self._path, self._dtype, mode="r", shape=shape))


def _cannot_write(path: Path, error: OSError) -> MmadFastError:
    return MmadFastError(
        f"{path}: cannot write the features of the scans ({error.strerror}); free some space "
        "there, or set TMPDIR to a folder on a larger disk (up to 40 MB per scan)"
    )


@dataclass(frozen=True)
class _Stored:
    """Where an array is."""

    file: str
    index: int


class FeatureStore(Generic[Features]):
    """The features of those scans that have any: in memory up to a limit, the others on disk.

    Each access reads a scan's arrays anew from disk: do not keep them all.

    Attributes:
        positions: Of each kept scan its position among those that were given.
    """

    def __init__(
        self, directory: Path, *, memory_limit_mib: float = 0.0, in_halves: bool = False
    ) -> None:
        """An empty store with its files in `directory`, which is made if it is missing. `in_halves`
        rounds arrays of float32 to float16, as which they are given back."""
        directory.mkdir(exist_ok=True)
        self._in_halves = in_halves
        self.positions: list[int] = []
        self._num_given = 0
        self._directory = directory
        self._bytes_left = memory_limit_mib * 2**20
        self._files: dict[str, ArrayFile] = {}
        self._scans: list[Features] = []  # with a _Stored in place of each array on disk

    def __enter__(self) -> FeatureStore[Features]:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def __len__(self) -> int:
        return len(self._scans)

    def __getitem__(self, index: int, /) -> Features:
        return self.read(index)

    def __iter__(self) -> Iterator[Features]:
        return (self[index] for index in range(len(self)))

    def read(self, index: int, *, names: Collection[str] | None = None) -> Features:
        """The features of a scan; of its fields only those named, if any are, the others None."""
        stored: Any = self._scans[index]
        values = {
            field.name: self._get(getattr(stored, field.name))
            if names is None or field.name in names
            else None
            for field in fields(stored)
        }
        return type(stored)(**values)

    def append(self, features: Features) -> None:
        """Keeps the features of a scan.

        Raises:
            MmadFastError: the disk is full, or a value is too large for float16.
        """
        values = {one.name: getattr(features, one.name) for one in fields(features)}  # type: ignore[arg-type]
        if self._in_halves:
            values = {name: _halved(name, value) for name, value in values.items()}
        size = sum(map(_num_bytes, values.values()))
        if size <= self._bytes_left:
            self._bytes_left -= size
        else:
            values = {name: self._put(name, value) for name, value in values.items()}
        self._scans.append(type(features)(**values))
        self.positions.append(self._num_given)
        self._num_given += 1

    def skip(self) -> None:
        """Counts a scan that has no features."""
        self._num_given += 1

    def set_aside(self, indices: Collection[int]) -> FeatureStore[Features]:
        """A store of the scans at these indices, in their order here, which are then no longer part
        of this one. Both read the same files."""
        aside, scans, positions = copy.copy(self), self._scans, self.positions
        chosen = set(indices)
        for store, is_aside in ((aside, True), (self, False)):
            kept = [index for index in range(len(scans)) if (index in chosen) == is_aside]
            store._scans = [scans[index] for index in kept]
            store.positions = [positions[index] for index in kept]
        return aside

    def add(self, index: int, **arrays: NDArray) -> None:
        """Sets fields of a scan that were left open when it was appended; on disk.

        Raises:
            MmadFastError: the disk is full.
        """
        values: dict[str, Any] = {name: self._put(name, array) for name, array in arrays.items()}
        self._scans[index] = replace(self._scans[index], **values)  # type: ignore[type-var]

    def _put(self, name: str, value: Any) -> Any:
        """What stands for the value in memory: arrays go to disk."""
        if isinstance(value, SparseRows):
            return replace(
                value,
                **{part: self._put(f"{name}.{part}", getattr(value, part)) for part in _ROW_ARRAYS},
            )
        if isinstance(value, PooledRows):
            pixel_indices = self._put(f"{name}.pixel_indices", value.pixel_indices)
            return PooledRows(self._put(f"{name}.rows", value.rows), pixel_indices)
        if not isinstance(value, np.ndarray):
            return value
        if name not in self._files:
            self._files[name] = ArrayFile(self._directory / f"{name}.array")
        self._files[name].append(value)
        return _Stored(name, len(self._files[name]) - 1)

    def _get(self, value: Any) -> Any:
        """The value that `_put` was given."""
        if isinstance(value, SparseRows):
            return replace(value, **{part: self._get(getattr(value, part)) for part in _ROW_ARRAYS})
        if isinstance(value, PooledRows):
            return PooledRows(*map(self._get, value))
        return self._files[value.file].read(value.index) if isinstance(value, _Stored) else value


def _halved(name: str, value: Any) -> Any:
    """A field of features with float32 rounded to float16.

    Raises:
        MmadFastError: a value is too large for it.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        return value
    with np.errstate(over="ignore"):
        rounded = value.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise MmadFastError(
            f"the features {name!r} of a scan reach {np.abs(value).max():g}, and the training "
            "reads them in float16, which ends at 65504; check the weights of the backbone"
        )
    return rounded


def _num_bytes(value: Any) -> int:
    """The memory of the arrays in a field of features."""
    if isinstance(value, SparseRows):
        return sum(_num_bytes(getattr(value, part)) for part in _ROW_ARRAYS)
    if isinstance(value, PooledRows):
        return sum(map(_num_bytes, value))
    return int(value.nbytes) if isinstance(value, np.ndarray) else 0
