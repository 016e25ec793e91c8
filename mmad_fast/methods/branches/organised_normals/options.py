"""Options of the branch; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mmad_fast.methods.options import MethodOptions, option


@dataclass(frozen=True)
class OrganisedNormalsOptions(MethodOptions):
    """How far points are averaged before their normals are taken.

    Attributes:
        normals_sigma: Of the Gaussian, in pixels of the anomaly map's grid.
    """

    normals_sigma: float = option(
        1.2, "Gaussian over the points before their normals are taken, in pixels of the map.",
        minimum=0, maximum=16, in_rows=True,
    )  # fmt: skip
