"""The records a scan passes through, in flow order: Scan, PreparedScan, Result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmad_fast.errors import InvalidInputError

Unit = Literal["m", "mm"]
MIN_PLAUSIBLE_METRES = 0.005
"""Smallest coordinate taken for the largest of a scan: no camera stands 5 mm from the part. Metres
read as millimetres are below it."""
MAX_PLAUSIBLE_METRES = 20.0
"""Largest coordinate taken for metres. Industrial 3D cameras see up to a few metres; the same scan
in millimetres has coordinates in the hundreds."""


@dataclass(frozen=True)
class Scan:
    """One pixel-registered RGB + XYZ sample at the sensor's resolution. Make it with `from_arrays`.

    Attributes:
        rgb: (H, W, 3) uint8.
        xyz: (H, W, 3) float32 metres, camera frame, finite; (0, 0, 0) means no measurement.
        name: What to call the scan in messages and tables.
    """

    rgb: NDArray[np.uint8]
    xyz: NDArray[np.float32]
    name: str = ""

    @classmethod
    def from_arrays(
        cls, rgb: ArrayLike, xyz: ArrayLike, *, unit: Unit = "m", name: str = ""
    ) -> Scan:
        """The scan of two arrays, checked and copied where needed.

        Pixels with a NaN, infinite or masked coordinate have no measurement and become (0, 0, 0),
        which is how most cameras mark a hole.

        Args:
            rgb: (H, W, 3) uint8, 0-255.
            xyz: (H, W, 3) float32 or float64, in `unit`; (0, 0, 0), NaN, inf or
                masked means missing.
            unit: "m" or "mm".
            name: What to call the scan in messages.

        Returns:
            The scan, in metres, C-contiguous.

        Raises:
            InvalidInputError: wrong type or shape, an empty image, sizes that differ, an unknown
                unit, or numbers that cannot be in that unit.
        """
        label = f"scan {name!r}: " if name else ""
        rgb_array, xyz_array = _as_array(rgb, f"{label}rgb"), _as_array(xyz, f"{label}xyz")
        _check_image(rgb_array, xyz_array, label)
        if not isinstance(unit, str) or unit not in ("m", "mm"):
            raise InvalidInputError(f"{label}unit is {unit!r}; it must be 'm' or 'mm'")
        with np.errstate(invalid="ignore", over="ignore"):
            metres = np.ascontiguousarray(xyz_array, dtype=np.float32)
            if isinstance(xyz, np.ma.MaskedArray):
                is_masked = np.ma.getmaskarray(xyz).any(axis=-1, keepdims=True)
                metres = np.where(is_masked, np.float32(0), metres)
            extent = float(np.abs(metres).max())
        if not np.isfinite(extent):
            finite = np.isfinite(metres).all(axis=-1, keepdims=True)
            metres = np.where(finite, metres, np.float32(0))
            extent = float(np.abs(metres).max())
        if unit == "mm":
            metres = metres * np.float32(1e-3)
            extent *= 1e-3
        _check_extent(extent, unit, label)
        return cls(np.ascontiguousarray(rgb_array), metres, name)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]


def _as_array(array: ArrayLike, what: str) -> NDArray:
    try:
        return np.asarray(array)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{what} cannot be read as an array ({error}); it must be a NumPy array (H, W, 3)"
        ) from error


def _check_extent(extent: float, unit: Unit, label: str) -> None:
    """Raises if the largest coordinate, in metres, cannot be one of a scan in that unit.

    A scan without any measurement (0) is no matter of units.
    """
    advice = {
        ("m", True): "if they are millimetres, pass unit='mm' (--unit mm)",
        ("mm", False): "if they are metres, pass unit='m' (--unit m)",
    }
    sensor = "check the unit of the sensor's export"
    if extent > MAX_PLAUSIBLE_METRES:
        raise InvalidInputError(
            f"{label}xyz reaches {extent:.6g} m with unit={unit!r}, which cannot be metres in "
            f"front of an inspection camera (limit {MAX_PLAUSIBLE_METRES:g} m); "
            f"{advice.get((unit, True), sensor)}"
        )
    if 0 < extent < MIN_PLAUSIBLE_METRES:
        raise InvalidInputError(
            f"{label}xyz reaches only {extent:.6g} m with unit={unit!r}, nearer than any camera "
            f"stands (limit {MIN_PLAUSIBLE_METRES:g} m); {advice.get((unit, False), sensor)}"
        )


def _check_image(rgb: NDArray, xyz: NDArray, label: str) -> None:
    for what, array in (("rgb", rgb), ("xyz", xyz)):
        if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise InvalidInputError(
                f"{label}{what} has shape {array.shape}; it must be (H, W, 3) with H, W >= 1"
            )
    if rgb.dtype != np.uint8:
        raise InvalidInputError(
            f"{label}rgb has dtype {rgb.dtype}; it must be uint8 with values 0-255"
        )
    if xyz.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InvalidInputError(
            f"{label}xyz has dtype {xyz.dtype}; it must be float32 or float64 coordinates"
        )
    if rgb.shape != xyz.shape:
        raise InvalidInputError(
            f"{label}rgb is {rgb.shape[0]}x{rgb.shape[1]} and xyz is {xyz.shape[0]}x{xyz.shape[1]};"
            " they must be registered pixel by pixel and have the same size"
        )


@dataclass(frozen=True)
class PreparedScan:
    """A scan after preprocessing: what detectors read.

    Attributes:
        rgb: (3, R, R) float32, resized and normalised network input.
        xyz: (S, S, 3) float32 metres on the anomaly map's grid; (0, 0, 0) is background or missing.
        points: (N, 3) float32 metres, the pixels of `xyz` with all three coordinates non-zero, in
            row-major order.
        pixel_indices: (N,) int64, row-major index on the S x S grid of each point.
        native_size: (H, W) of the scan.
        padding: (top, bottom, left, right) pixels that made the scan square.
        name: The scan's name.
    """

    rgb: NDArray[np.float32]
    xyz: NDArray[np.float32]
    points: NDArray[np.float32]
    pixel_indices: NDArray[np.int64]
    native_size: tuple[int, int]
    padding: tuple[int, int, int, int]
    name: str = ""

    @property
    def grid_size(self) -> int:
        """S, the side of the anomaly map's grid in pixels."""
        return int(self.xyz.shape[0])


@dataclass(frozen=True)
class Result:
    """What a detector says of one scan.

    Attributes:
        image_score: The scan's anomaly score; higher is more anomalous.
        anomaly_map: (S, S) float32 on the network's grid, of the padded square; its maximum is the
            image score unless the method says otherwise.
        threshold: The decision threshold on the image score, None if none was set.
        is_anomalous: image_score > threshold, None without a threshold.
        stage_ms: Milliseconds per stage, in order of execution.
        native_size: (H, W) of the scan.
        padding: (top, bottom, left, right) pixels that made the scan square.
        name: The scan's name.
        map_threshold: The threshold where it is one of the anomaly map as well, because the image
            score is the map's maximum; else None.
    """

    image_score: float
    anomaly_map: NDArray[np.float32]
    threshold: float | None
    is_anomalous: bool | None
    native_size: tuple[int, int]
    padding: tuple[int, int, int, int]
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    map_threshold: float | None = None

    @cached_property
    def native_anomaly_map(self) -> NDArray[np.float32]:
        """(H, W) float32: the anomaly map at the scan's own resolution, bilinear, padding removed.

        Computed at the first access: a line that only needs the decision does not pay for it.
        """
        from mmad_fast.preprocess.resizing import resize_map_to_native

        return resize_map_to_native(self.anomaly_map, self.native_size, self.padding)
