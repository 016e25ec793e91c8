"""The records a scan passes through, in flow order: Scan, PreparedScan, Result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.missing_values import MissingValue, Point, check_missing, point_in_file

Unit = Literal["m", "mm"]
UNITS_PER_METRE: Mapping[Unit, float] = {"m": 1.0, "mm": 1000.0}


@dataclass(frozen=True)
class Scan:
    """One pixel-registered RGB + XYZ sample at the sensor's resolution. Make it with `from_arrays`.

    Attributes:
        rgb: (H, W, 3) uint8.
        xyz: (H, W, 3) float32 metres, camera frame, finite; (0, 0, 0) means no measurement, and
            no coordinate of a measured point is 0.
        name: What to call the scan in messages and tables.
        unit: That of the numbers it was made of.
        missing_values: What was found in these, beside (0, 0, 0) and NaN, to stand for no
            measurement.
        normals: (H, W, 3) uint8: a picture of the surface normals that came with the scan.
    """

    rgb: NDArray[np.uint8]
    xyz: NDArray[np.float32]
    name: str = ""
    unit: Unit = "m"
    missing_values: tuple[MissingValue, ...] = ()
    normals: NDArray[np.uint8] | None = None

    @classmethod
    def from_arrays(
        cls,
        rgb: ArrayLike,
        xyz: ArrayLike,
        *,
        unit: Unit = "m",
        missing: float | None = None,
        name: str = "",
        normals: ArrayLike | None = None,
    ) -> Scan:
        """The scan of two arrays, copied and checked; what becomes of the arrays meanwhile or later
        does not matter.

        A pixel is missing, and becomes (0, 0, 0), where a coordinate is NaN, infinite, masked or
        `missing`, where all are 0, where a point lies beyond 20 m, and where a number stands for no
        measurement: one point at many pixels (-9999 in x, y and z), or one coordinate at many
        pixels that is far from all others of its axis. A single coordinate of 0 is measured and
        becomes 1e-9 m, so that "no coordinate is 0" holds of measured points.

        Args:
            rgb: (H, W, 3) uint8, 0-255.
            xyz: (H, W, 3) float32 or float64, in `unit`; (0, 0, 0), NaN, inf or masked means
                missing.
            unit: "m" or "mm".
            missing: Number that stands for no measurement wherever it stands in x, y or z, in
                `unit`; None: only what is found.
            name: What to call the scan in messages.
            normals: (H, W, 3) uint8: a picture of the surface normals, registered with rgb, for
                detectors that read the data set's own.

        Returns:
            The scan, in metres, C-contiguous.

        Raises:
            InvalidInputError: wrong type or shape, an empty image, sizes that differ, an unknown
                unit, numbers that cannot be in that unit, or `missing` is no number.

        Source: the rules for what is missing stand in csrc/run/scan_points.h.
        """
        from mmad_fast import _kernels

        label = f"scan {name!r}: " if name else ""
        if isinstance(xyz, np.ma.MaskedArray) and xyz.dtype.kind == "f":
            xyz = xyz.filled(np.nan)
        rgb_array, xyz_array = _as_array(rgb, f"{label}rgb"), _as_array(xyz, f"{label}xyz")
        _check_image(rgb_array, xyz_array, label)
        if not isinstance(unit, str) or unit not in UNITS_PER_METRE:
            raise InvalidInputError(f"{label}unit is {unit!r}; it must be 'm' or 'mm'")
        missing = check_missing(missing)
        scale = UNITS_PER_METRE[unit]
        metres = np.empty(xyz_array.shape, np.float32)
        marks, median_m = _kernels.read_points(
            np.ascontiguousarray(xyz_array), scale, missing, metres
        )
        _check_extent(median_m, unit, label)
        num_pixels = xyz_array.shape[0] * xyz_array.shape[1]
        found = tuple(
            MissingValue(point_in_file(point, scale), count / num_pixels) for point, count in marks
        )
        picture = None if normals is None else _read_normals(normals, rgb_array, label)
        return cls(np.array(rgb_array, order="C"), metres, name, unit, found, picture)

    def without(self, points: Sequence[Point]) -> Scan:
        """The scan in which these values are missing too, however few pixels they stand at.

        Args:
            points: As they stand in the file, in its unit.
        """
        from mmad_fast import _kernels

        scale = UNITS_PER_METRE[self.unit]
        if not points or not _kernels.clear_marks(self.xyz, points, scale, None):
            return self
        xyz = self.xyz.copy()
        _kernels.clear_marks(self.xyz, points, scale, xyz)
        return replace(self, xyz=xyz)

    @property
    def missing_share(self) -> float:
        """Of the pixels that hold anything but (0, 0, 0) and NaN, the share at which
        `missing_values` stand."""
        missing = sum(value.share for value in self.missing_values)
        if missing == 0:
            return 0.0
        measured = np.count_nonzero(self.xyz[..., 2]) / (self.size[0] * self.size[1])
        return float(missing / (missing + measured))

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
    """Raises if that cannot be how far a scan in that unit reaches, in metres: the median over its
    points, which stray ones do not move.

    A scan without any measurement (NaN) is no matter of units.
    """
    from mmad_fast import _kernels

    low, high = _kernels.MIN_PLAUSIBLE_METRES, _kernels.MAX_PLAUSIBLE_METRES
    advice = "check the unit of the sensor's export, and whether a number stands for no measurement"
    for other, scale in UNITS_PER_METRE.items():
        if other != unit and low <= extent * UNITS_PER_METRE[unit] / scale <= high:
            long_name = {"m": "metres", "mm": "millimetres"}[other]
            advice = f"if they are {long_name}, pass unit={other!r} (--unit {other})"
    if extent > high:
        raise InvalidInputError(
            f"{label}xyz reaches {extent:.6g} m with unit={unit!r}, which cannot be metres in "
            f"front of an inspection camera (median of the points; limit {high:g} m); {advice}"
        )
    if extent < low:
        raise InvalidInputError(
            f"{label}xyz reaches only {extent:.6g} m with unit={unit!r}, nearer than any camera "
            f"stands (median of the points; limit {low:g} m); {advice}"
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


def _read_normals(normals: ArrayLike, rgb: NDArray, label: str) -> NDArray[np.uint8]:
    picture = _as_array(normals, f"{label}normals")
    if picture.shape != rgb.shape or picture.dtype != np.uint8:
        raise InvalidInputError(
            f"{label}normals is {picture.dtype} of shape {picture.shape}; it must be uint8 of "
            f"shape {rgb.shape}, as rgb: a picture of the surface normals, registered with it"
        )
    return np.array(picture, order="C")


@dataclass(frozen=True)
class DepthPicture:
    """The depth of a scan on the anomaly map's grid.

    Attributes:
        values: (S, S) float32 centimetres: depth minus the object's mean depth, 0 off the object.
        foreground: (S, S) bool, True where the object has a share in the pixel.
        has_plane: The background's depth is known; else every measured pixel is the object.
    """

    values: NDArray[np.float32]
    foreground: NDArray[np.bool_]
    has_plane: bool


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
        padding: (top, bottom, left, right) pixels that made the scan square; all 0 where it was
            stretched.
        name: The scan's name.
        depth: The depth as a picture, where the recipe makes one.
        auxiliary: (A, 3, R, R) float32, normalised network inputs as `rgb`: the pictures that the
            recipe's `auxiliary` names, in its order; None where it names none.
    """

    rgb: NDArray[np.float32]
    xyz: NDArray[np.float32]
    points: NDArray[np.float32]
    pixel_indices: NDArray[np.int64]
    native_size: tuple[int, int]
    padding: tuple[int, int, int, int]
    name: str = ""
    depth: DepthPicture | None = None
    auxiliary: NDArray[np.float32] | None = None

    @property
    def grid_size(self) -> int:
        """S, the side of the anomaly map's grid in pixels."""
        return int(self.xyz.shape[0])


@dataclass(frozen=True)
class Result:
    """What a detector says of one scan.

    Attributes:
        image_score: The scan's anomaly score; higher is more anomalous.
        anomaly_map: (S, S) float32 on the network's grid, of the padded or stretched square; its
            maximum is the image score unless the method says otherwise.
        threshold: The decision threshold on the image score, None if none was set.
        is_anomalous: image_score > threshold, None without a threshold.
        stage_ms: Milliseconds per stage, in order of execution.
        native_size: (H, W) of the scan.
        padding: (top, bottom, left, right) pixels that made the scan square; all 0 where it was
            stretched.
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
