"""The constants of a CFM detector, as the manifest holds them. Shared by both halves; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmad_fast.methods.backbone_parameters import BackboneParameters

PSI_MAPS: dict[str, tuple[str, ...]] = {
    "product": ("psi_2d", "psi_3d"),
    "sum": ("psi_2d", "psi_3d"),
    "max": ("psi_2d", "psi_3d"),
    "psi_2d": ("psi_2d",),
    "psi_3d": ("psi_3d",),
}
"""Discrepancy maps that each aggregation reads."""

MAPPINGS: dict[str, dict[str, str]] = {
    "crossmodal": {"psi_2d": "point_to_rgb", "psi_3d": "rgb_to_point"},
    "intramodal": {"psi_2d": "rgb_to_rgb", "psi_3d": "point_to_point"},
}
"""Network behind each discrepancy map: it predicts the map's own modality from the source's."""


@dataclass(frozen=True)
class CfmParameters(BackboneParameters):
    """What a CFM detector was fitted with.

    Attributes:
        aggregation: "product", "sum", "max", "psi_2d" or "psi_3d".
        mapping: "crossmodal" or "intramodal".
        score_norm: "cfm" (divide by the root of the mean non-zero discrepancy) or "raw".
        smoothing: "boxes53" (the published boxes) or "sigma4" (the paper's Gaussian).
        hidden: Width and depth of the mapping networks: "published" or "big".
        pixel_stride: 1, 2 or 4: the discrepancy is computed at one pixel per block of that side and
            holds for the block's other foreground pixels. Above 1 it approximates.
    """

    KNOWN_VALUES: ClassVar = {
        **BackboneParameters.KNOWN_VALUES,
        "aggregation": tuple(PSI_MAPS),
        "mapping": tuple(MAPPINGS),
        "score_norm": ("cfm", "raw"),
        "smoothing": ("boxes53", "sigma4"),
        "hidden": ("published", "big"),
        "pixel_stride": (1, 2, 4),
    }

    aggregation: str = "product"
    mapping: str = "crossmodal"
    score_norm: str = "cfm"
    smoothing: str = "boxes53"
    hidden: str = "published"
    pixel_stride: int = 1

    @property
    def is_exact(self) -> bool:
        """The detector gives the published pipeline's answer, up to rounding."""
        return self.pixel_stride == 1 and self.precision == "float32"

    @property
    def networks(self) -> dict[str, str]:
        """Network name by discrepancy map, for the maps that the aggregation reads."""
        by_map = MAPPINGS[self.mapping]
        return {psi: by_map[psi] for psi in PSI_MAPS[self.aggregation]}
