"""Numbers that stand for "no measurement" in a sensor's files: -9999 in x, y and z, and so on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmad_fast.errors import ArtifactError, InvalidInputError

Point = tuple[float | None, float | None, float | None]
"""(x, y, z) as they stand in the file, in its unit; None: whatever stands there."""
MAX_RECORDED = 8
"""Values that a manifest names. A scan that was cut out by a moved frame has one of its own."""


@dataclass(frozen=True)
class MissingValue:
    """What stands at pixels that were not measured.

    Attributes:
        point: What stands there.
        share: Of the pixels; of several scans, of those in which it was found.
        num_scans: In which it was found.
    """

    point: Point
    share: float
    num_scans: int = 1

    def __str__(self) -> str:
        numbers = ["any" if number is None else f"{number:.7g}" for number in self.point]
        return f"({', '.join(numbers)})"


@dataclass(frozen=True)
class MissingRecord:
    """What a fit took as missing. Stored in the manifest.

    Attributes:
        values: A number that was given, then what was found, the most frequent first; also applied
            to each scan that the detector is asked about.
        largest_share: Of the pixels that hold anything at all, in the scan with most of them.
    """

    values: tuple[MissingValue, ...] = ()
    largest_share: float = 0.0

    @property
    def points(self) -> tuple[Point, ...]:
        """Those of the values."""
        return tuple(value.point for value in self.values)

    def __str__(self) -> str:
        found = [value for value in self.values if value.num_scans]
        return ", ".join(
            f"{value} at {value.share:.1%} of the pixels of {value.num_scans} scans"
            for value in found
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = [{**asdict(value), "point": list(value.point)} for value in self.values]
        return {"values": values, "largest_share": self.largest_share}

    @classmethod
    def from_dict(cls, record: Any) -> MissingRecord:
        """The record of `to_dict`.

        Raises:
            ArtifactError: something else.
        """
        try:
            if len(record["values"]) > MAX_RECORDED:  # each takes time at each scan
                raise ValueError(f"{len(record['values'])} values, not at most {MAX_RECORDED}")
            values = tuple(_value_from(one) for one in record["values"])
            return cls(values, _share(record["largest_share"]))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ArtifactError(
                f"the manifest's missing_values are damaged ({error!r}); copy the artifact again "
                "or fit it again"
            ) from error


class MissingTally:
    """Collects what stood for no measurement in the scans of a fit."""

    def __init__(self) -> None:
        self._shares: dict[Point, dict[object, float]] = {}
        self._largest_share = 0.0

    def add(self, key: object, values: Iterable[MissingValue], share: float) -> None:
        """Adds the values of a scan; one that was added before counts once.

        Args:
            key: The same for the same scan.
            values: What stands for no measurement in it.
            share: Of all of them, among the pixels that hold anything.
        """
        for value in values:
            shares = self._shares.setdefault(value.point, {})
            if value.share > 0:
                shares[key] = value.share
        self._largest_share = max(self._largest_share, share)

    def record(self, given: float | None = None) -> MissingRecord:
        """What has been found so far; first of all the number that a user has given, on each axis,
        also where no scan had it there."""

        def is_given(point: Point) -> bool:
            numbers = [np.float32(number) for number in point if number is not None]
            return given is not None and numbers == [np.float32(given)]

        values = [
            MissingValue(point, math.fsum(shares.values()) / max(len(shares), 1), len(shares))
            for point, shares in self._shares.items()
        ]
        values.sort(  # stable
            key=lambda value: (not is_given(value.point), -value.num_scans, -value.share)
        )
        return MissingRecord(tuple(values[:MAX_RECORDED]), self._largest_share)


def check_missing(missing: Any) -> float | None:
    """The number that a user says stands for no measurement, as float; None stays.

    Raises:
        InvalidInputError: no finite number.
    """
    if missing is None:
        return None
    is_number = isinstance(missing, (int, float, np.integer, np.floating))
    if not is_number or isinstance(missing, bool) or not math.isfinite(missing):
        raise InvalidInputError(
            f"missing is {missing!r}; it must be the number that stands for no measurement in the "
            "file, e.g. -9999; NaN and infinite coordinates are missing anyway"
        )
    return float(missing)


def point_in_file(metres: Point, units_per_metre: float) -> Point:
    """A point of a scan as it stands in its file: the number of at most 7 digits that is read as
    that float32, where there is one."""

    def number(value: float | None) -> float | None:
        if value is None:
            return None
        short = float(f"{value * units_per_metre:.7g}")
        is_same = np.float32(short / units_per_metre) == np.float32(value)
        return short if is_same else value * units_per_metre

    x, y, z = metres
    return number(x), number(y), number(z)


def _value_from(record: Mapping[str, Any]) -> MissingValue:
    x, y, z = (None if number is None else _finite(number) for number in record["point"])
    if (x, y, z) == (None, None, None):
        raise ValueError("a point without a number would take away every pixel")
    return MissingValue((x, y, z), _share(record["share"]), int(record["num_scans"]))


def _finite(number: Any) -> float:
    value = float(number)
    if isinstance(number, (str, bool)) or not math.isfinite(value):
        raise ValueError(f"{number!r} is no finite number")
    return value


def _share(number: Any) -> float:
    if not 0 <= _finite(number) <= 1:
        raise ValueError(f"{number!r} is no share")
    return float(number)
