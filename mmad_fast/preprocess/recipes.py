"""Preprocessing recipes: what differs between the methods' preparations of a scan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mmad_fast.errors import ArtifactError, InvalidInputError

RGB_BACKGROUNDS = ("keep", "black")
RGB_PADDINGS = ("edge", "zero")
SQUARINGS = ("padding", "stretching")
RGB_FILTERS = ("bicubic", "bilinear")
AUXILIARY_PICTURES = ("depth", "normals")
NORMALS_SOURCES = ("points", "sobel", "images")
SOBEL_SIZES = (3, 5, 7)
DEPTH_AXES = ("z", "y")
MIN_CLUSTER_RADIUS_M = 1e-4
MAX_LENGTH_M = 1000.0
MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class Recipe:
    """How a scan becomes network input. Stored in a detector's manifest.

    Attributes:
        name: As in `--recipe` and in the manifest.
        remove_background: Whether the background plane and stray components are removed from xyz.
            False for scans that come without background.
        rgb_background: "keep" the RGB of removed pixels, or make it "black".
        rgb_padding: Fill of the border that makes RGB and ground truth square: "edge" repeats the
            outermost pixel, "zero" is black and not anomalous. xyz is always padded by zero.
        rim_width_px: Width of the image's rim in which the background plane is looked for.
        min_rim_points: Measured rim pixels, and plane inliers among them, below which no plane is
            looked for or accepted.
        min_inlier_fraction: Inliers among the measured rim points that a plane needs. Not in the
            published recipe, which removes the best plane however bad it is.
        min_rim_coverage: Inliers among all rim pixels that a plane needs. Not in the published
            recipe; keeps a part of an object that touches the rim of a background-free scan from
            being taken for the background.
        plane_inlier_m: Largest distance of an inlier from the plane.
        plane_removal_m: Pixels strictly nearer to the plane than this are removed.
        cluster_radius_m: Neighbourhood radius of the clean-up's clustering, at least 0.1 mm.
        cluster_min_points: Points in the neighbourhood, itself included, that make a core point.
        seed: Seed of the plane search, below 2^63.
        mean: Of the RGB channels, of values scaled to 0-1.
        std: Likewise, positive.
        squaring: How a scan becomes square: by "padding", or by "stretching" its shorter side.
        rgb_filter: Of the resized RGB, as Pillow's of that name.
        depth_plane_m: With a number the depth is prepared as a picture (PreparedScan.depth), and
            the foreground is what lies further than this from the background's depth between the
            scan's corners. Not together with remove_background.
        auxiliary: Pictures of the scan's geometry that become network inputs beside RGB
            (PreparedScan.auxiliary): "depth", "normals", or both in this order.
        normals_from: What surface normals are computed from: the "points", the depth by TRD's
            "sobel" filter, or the data set's own "images" (Scan.normals).
        sobel_size: Side of that filter.
        depth_axis: Along which the camera looks, of the pictures of the geometry: "z", or "y" of
            Eyecandies as converted, whose points are (x, -depth, height).
    """

    name: str
    remove_background: bool
    rgb_background: str
    rgb_padding: str
    rim_width_px: int = 10
    min_rim_points: int = 50
    min_inlier_fraction: float = 0.3
    min_rim_coverage: float = 0.1
    plane_inlier_m: float = 0.004
    plane_removal_m: float = 0.005
    cluster_radius_m: float = 0.006
    cluster_min_points: int = 30
    seed: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    squaring: str = "padding"
    rgb_filter: str = "bicubic"
    depth_plane_m: float | None = None
    auxiliary: tuple[str, ...] = ()
    normals_from: str = "points"
    sobel_size: int = 5
    depth_axis: str = "z"

    def __post_init__(self) -> None:
        for name, known in (
            ("rgb_background", RGB_BACKGROUNDS),
            ("rgb_padding", RGB_PADDINGS),
            ("squaring", SQUARINGS),
            ("rgb_filter", RGB_FILTERS),
            ("normals_from", NORMALS_SOURCES),
            ("sobel_size", SOBEL_SIZES),
            ("depth_axis", DEPTH_AXES),
        ):
            value = getattr(self, name)
            self._require(value in known, name, f"one of {', '.join(map(str, known))}")
        for name in ("rim_width_px", "min_rim_points", "cluster_min_points"):
            value = getattr(self, name)
            self._require(
                _is_integer(value) and 1 <= value <= MAX_COUNT, name, f">= 1 and <= {MAX_COUNT}"
            )
        self._require(
            _is_integer(self.seed) and 0 <= self.seed < 2**63, "seed", "an integer in 0..2^63 - 1"
        )
        for name in ("plane_inlier_m", "plane_removal_m"):
            value = getattr(self, name)
            self._require(
                _is_finite(value) and 0 < value <= MAX_LENGTH_M,
                name,
                f"a number of metres > 0 and <= {MAX_LENGTH_M:g}",
            )
        radius_is_usable = (
            _is_finite(self.cluster_radius_m)
            and MIN_CLUSTER_RADIUS_M <= self.cluster_radius_m <= MAX_LENGTH_M
        )
        self._require(
            radius_is_usable,
            "cluster_radius_m",
            f"a number of metres >= {MIN_CLUSTER_RADIUS_M:g} and <= {MAX_LENGTH_M:g}",
        )
        for name in ("min_inlier_fraction", "min_rim_coverage"):
            value = getattr(self, name)
            self._require(_is_finite(value) and 0 <= value <= 1, name, "between 0 and 1")
        for name in ("mean", "std"):
            value = getattr(self, name)
            is_triple = isinstance(value, tuple) and len(value) == 3
            self._require(is_triple and all(map(_is_finite, value)), name, "three finite numbers")
        self._require(min(self.std) > 0, "std", "three positive numbers")
        distance = self.depth_plane_m
        is_distance = distance is None or (_is_finite(distance) and 0 < distance <= MAX_LENGTH_M)
        self._require(
            is_distance and not (self.remove_background and distance is not None),
            "depth_plane_m",
            f"None or, without remove_background, a number of metres > 0 and <= {MAX_LENGTH_M:g}",
        )
        self._require(_is_integer(self.sobel_size), "sobel_size", "an integer")
        pictures = self.auxiliary
        self._require(
            isinstance(pictures, tuple)
            and pictures == tuple(one for one in AUXILIARY_PICTURES if one in pictures),
            "auxiliary",
            f"some of {', '.join(AUXILIARY_PICTURES)}, in this order",
        )
        for name in ("name", "remove_background"):
            kind = str if name == "name" else bool
            self._require(isinstance(getattr(self, name), kind), name, f"a {kind.__name__}")

    def _require(self, condition: bool, name: str, need: str) -> None:
        if not condition:
            raise InvalidInputError(
                f"preprocessing recipe: {name} is {getattr(self, name)!r}; it must be {need}"
            )

    @property
    def reads_normals(self) -> bool:
        """Scans are prepared with the pictures of their normals (Scan.normals)."""
        return "normals" in self.auxiliary and self.normals_from == "images"

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON-ready values, for the manifest; of the fields that came later only
        those that it uses."""
        record = asdict(self)
        for name, default in _ADDED.items():
            if record[name] == default:
                del record[name]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in record.items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Recipe:
        """The recipe of `to_dict`'s record.

        Raises:
            ArtifactError: not a mapping, a key is missing or unknown, or a value is out of range.
        """
        if not isinstance(record, Mapping):
            raise ArtifactError(
                f"preprocessing recipe is a {type(record).__name__}; it must be an object: fit it "
                "again"
            )
        known = {field.name for field in fields(cls)}
        missing, unknown = sorted(known - set(record) - set(_ADDED)), sorted(set(record) - known)
        if missing or unknown:
            raise ArtifactError(
                f"preprocessing recipe has missing keys {missing} and unknown keys {unknown}; the "
                "artifact is damaged or of another version: fit it again with this version"
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        try:
            return cls(**values)
        except InvalidInputError as error:
            raise ArtifactError(str(error)) from None


_ADDED_NAMES = (
    "squaring", "rgb_filter", "depth_plane_m", "auxiliary", "normals_from", "sobel_size",
    "depth_axis",
)  # fmt: skip
_ADDED = {field.name: field.default for field in fields(Recipe) if field.name in _ADDED_NAMES}
"""Fields that recipes of earlier versions lack, with what these meant."""


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


NO_CLEAN_UP = Recipe("none", remove_background=False, rgb_background="keep", rgb_padding="edge")
"""For data that come without background, such as Eyecandies converted to XYZ. Source: method facts
1.5. The published recipes stand in their families' records, mmad_fast/methods/<family>/family.py.
"""
