"""Options of the branch; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmad_fast.methods.options import MethodOptions, option


@dataclass(frozen=True)
class FpfhOptions(MethodOptions):
    """Which neighbours of a point its histograms describe. The defaults are the public code's of
    BTF; its radii never bind on parts of the size of a hand.

    Attributes:
        fpfh_normal_neighbors: Nearest points that a normal is fitted to.
        fpfh_neighbors: Nearest points whose normals the histograms compare.
        fpfh_normal_radius: In metres, within which the former lie; None: anywhere.
        fpfh_radius: Likewise of the latter.
        fpfh_orientation: The side to which normals point: "open3d", the sign that Open3D's formula
            happens to give, as published, or "camera".
    """

    fpfh_normal_neighbors: int = option(
        30, "Nearest points that a surface normal is fitted to.", minimum=3, maximum=1024,
        in_rows=True,
    )  # fmt: skip
    fpfh_neighbors: int = option(
        100, "Nearest points that a point's histograms compare it with.", minimum=2, maximum=1024,
        in_rows=True,
    )  # fmt: skip
    fpfh_normal_radius: float | None = option(
        0.10,
        "Of the points of a normal, in metres; none: no limit.",
        above=1e-6,
        maximum=100,
        in_rows=True,
    )
    fpfh_radius: float | None = option(
        0.25,
        "Of the points of a histogram, in metres; none: no limit.",
        above=1e-6,
        maximum=100,
        in_rows=True,
    )
    fpfh_orientation: Literal["open3d", "camera"] = option(
        "open3d",
        "Which side normals point to: open3d, whatever its formula gives, as published; or camera.",
        in_rows=True,
    )
