"""A spatial index over one cloud, made once per scan and shared by the geometric ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import DeviceArray, is_device_array, read_device_array
from mmad_fast.validation import check_float_matrix

if TYPE_CHECKING:
    from mmad_fast import _kernels

__all__ = ["PointIndex", "read_cloud"]


class PointIndex:
    """A spatial index over a cloud: give it to the ops as `index=`, and none builds its own.

    Results are the same with and without it. It is built when an op first needs it. The backends of
    CUDA devices have none.

    Attributes:
        points: (N, 3) float32, validated. They must not change as long as the index is used.
    """

    def __init__(self, points: NDArray[np.float32]) -> None:
        """Takes points (N, 3) float32, any unit, finite; N may be 0; a NumPy array.

        Raises:
            InvalidInputError: points are no finite (N, 3) float array.
        """
        if is_device_array(points):
            raise InvalidInputError(
                "points are on a CUDA device, whose backends use no PointIndex; call the ops "
                "without index="
            )
        self.points = check_float_matrix(points, "points", num_columns=3)
        self._given = points
        self._kernel_index: _kernels.PointIndex | None = None

    @classmethod
    def of(cls, points: NDArray[np.float32], index: PointIndex | None = None) -> PointIndex:
        """The given index, or a new one where it is None.

        Raises:
            InvalidInputError: points are no finite (N, 3) float array, or the index is of others.
        """
        if index is None:
            return cls(points)
        if not isinstance(index, PointIndex):
            raise InvalidInputError(
                f"index is a {type(index).__qualname__}; it must be a PointIndex: make it with "
                "PointIndex(points)"
            )
        if points is index.points or points is index._given:
            return index
        if not np.array_equal(check_float_matrix(points, "points", num_columns=3), index.points):
            raise InvalidInputError(
                f"index is of {len(index.points)} other points; it must be of the {len(points)} "
                "points given beside it: make it with PointIndex(points)"
            )
        return index

    def __len__(self) -> int:
        return len(self.points)

    @property
    def kernel_index(self) -> _kernels.PointIndex:
        """The compiled kernels' index; keeps `points` alive."""
        # No lock: two threads may both build it, but a forked child never waits for one of its
        # parent's threads.
        if self._kernel_index is None:
            from mmad_fast import _kernels

            self._kernel_index = _kernels.PointIndex(self.points)
        return self._kernel_index


def read_cloud(points: Any, index: PointIndex | None = None) -> PointIndex | DeviceArray:
    """What the backends read of points (N, 3): on a CUDA device the array itself, else the
    given index or a new one.

    Raises:
        InvalidInputError: as PointIndex.of; on a device: other than float32, not C-contiguous, or
            an index is given.
    """
    if not is_device_array(points):
        return PointIndex.of(points, index)
    refuse_index(index)
    return read_device_array(points, "points", shape=(None, 3))


def refuse_index(index: PointIndex | None) -> None:
    """Raises InvalidInputError where one is given beside arrays on a CUDA device."""
    if index is not None:
        raise InvalidInputError(
            "index= serves NumPy arrays only and points are on a CUDA device: leave it away"
        )
