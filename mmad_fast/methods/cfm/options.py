"""Options of CFM. Both halves read them; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmad_fast.methods.branches.point_groups.options import PointGroupOptions
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.methods.options import option

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
class CfmOptions(VitTokenOptions, PointGroupOptions):
    """What a CFM detector is fitted with.

    Attributes:
        aggregation: How the discrepancy maps become one.
        mapping: Which features are predicted from which.
        hidden: Width and depth of the mapping networks.
        score_norm: "cfm" (divide by the root of the mean non-zero discrepancy) or "raw".
        smoothing: "boxes53" (the published boxes) or "sigma4" (the paper's Gaussian).
        pixel_stride: The discrepancy is computed at one pixel per block of that side and holds for
            the block's other foreground pixels. Above 1 it approximates.
        epochs, pixels_per_step, learning_rate, standardize, schedule, batch_scans, patience: As in
            training.TrainingRecipe.
    """

    aggregation: str = option(
        "product", "How the two discrepancy maps become one.", choices=tuple(PSI_MAPS),
        in_rows=True,
    )  # fmt: skip
    mapping: str = option(
        "crossmodal", "Which features are predicted from which.", choices=tuple(MAPPINGS),
        in_rows=True,
    )  # fmt: skip
    hidden: Literal["published", "big"] = option(
        "published", "Width and depth of the mapping networks; big: of the Eyecandies tables."
    )
    score_norm: Literal["cfm", "raw"] = option(
        "cfm", "Division of the map by the root of its mean non-zero value, or none."
    )
    smoothing: Literal["boxes53", "sigma4"] = option(
        "boxes53", "Of the map: the published boxes, or the paper's Gaussian."
    )
    pixel_stride: Literal[1, 2, 4] = option(
        1, "Above 1: one discrepancy per block of pixels, approximate.", in_rows=True
    )
    epochs: int | None = option(
        None, "Passes over the training scans; default: as many as 200 steps need.",
        minimum=1, fit_only=True,
    )  # fmt: skip
    pixels_per_step: int | None = option(
        512, "Foreground pixels per step; none: all, as published.", minimum=1, fit_only=True
    )
    learning_rate: float = option(3e-3, "Of Adam, at the start.", above=0, fit_only=True)
    standardize: bool = option(
        True, "Train on features of mean 0 and deviation 1 per channel; published: false.",
        fit_only=True,
    )  # fmt: skip
    schedule: Literal["cosine", "constant"] = option(
        "cosine", "Of the learning rate; constant is the published one.", fit_only=True
    )
    batch_scans: int = option(4, "Scans per step.", minimum=1, fit_only=True)
    patience: int | None = option(
        10, "Epochs without a better validation loss before the training stops; none: never.",
        minimum=1, fit_only=True,
    )  # fmt: skip

    @property
    def is_exact(self) -> bool:
        """The detector gives the published pipeline's answer, up to rounding."""
        return self.pixel_stride == 1 and self.precision == "fp32"

    @property
    def networks(self) -> dict[str, str]:
        """Network name by discrepancy map, for the maps that the aggregation reads."""
        by_map = MAPPINGS[self.mapping]
        return {psi: by_map[psi] for psi in PSI_MAPS[self.aggregation]}
