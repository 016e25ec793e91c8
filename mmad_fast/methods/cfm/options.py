"""Options of CFM. Both halves read them; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmad_fast.methods.branches.fpfh.options import FpfhOptions
from mmad_fast.methods.branches.organised_normals.options import OrganisedNormalsOptions
from mmad_fast.methods.branches.point_groups.options import PointGroupOptions
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.methods.options import (
    MethodOptions,
    constant,
    option,
    option_default,
    option_fields,
)

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

BY_FORMULA: tuple[type[MethodOptions], ...] = (OrganisedNormalsOptions, FpfhOptions)
"""Options of the branches that the variants without Point-MAE run."""

NORMALS_OF_NEIGHBORS = ("fpfh_normal_neighbors", "fpfh_normal_radius", "fpfh_orientation")


@dataclass(frozen=True)
class CfmOptions(VitTokenOptions, PointGroupOptions, OrganisedNormalsOptions, FpfhOptions):
    """What a CFM detector is fitted with.

    Attributes:
        geometry: The second modality: features of point groups, tokens of the picture of surface
            normals, or pooled histograms and normals.
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

    geometry: Literal["point", "normals", "fpfh"] = constant("point")
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

    def with_constants(self) -> CfmOptions:
        """With the sizes of the network, and the discrepancy at every place where it is one of
        tokens."""
        options = super().with_constants()
        return options if self.geometry == "point" else replace(options, pixel_stride=1)

    def without_effect(self) -> Mapping[str, str]:
        """See MethodOptions."""
        if self.geometry == "point":
            return {}
        idle = {"pixel_stride": "the discrepancy is one of tokens, not of pixels"}
        if self.geometry == "fpfh":
            reason = "the normals are those of the pixel grid, see normals_sigma"
            idle |= dict.fromkeys(NORMALS_OF_NEIGHBORS, reason)
        return idle

    def to_manifest(self) -> dict[str, Any]:
        """See MethodOptions. Of a detector with point groups in the form of versions that had no
        other."""
        content = super().to_manifest()
        left_out = _of_formulas() if self.geometry == "point" else frozenset()
        return {name: value for name, value in content.items() if name not in left_out}

    @classmethod
    def from_manifest(cls, content: Mapping[str, Any]) -> CfmOptions:
        """See MethodOptions."""
        if "geometry" not in content:
            content = {**{name: option_default(cls, name) for name in _of_formulas()}, **content}
        return super().from_manifest(content)

    @property
    def is_exact(self) -> bool:
        """The detector gives the published pipeline's answer, up to rounding."""
        return self.pixel_stride == 1 and self.precision == "fp32"

    @property
    def networks(self) -> dict[str, str]:
        """Network name by discrepancy map, for the maps that the aggregation reads."""
        by_map = MAPPINGS[self.mapping]
        return {psi: by_map[psi] for psi in PSI_MAPS[self.aggregation]}


def _of_formulas() -> frozenset[str]:
    """What is read by detectors without point groups only."""
    names = {name for branch in BY_FORMULA for name in option_fields(branch)}
    return frozenset({"geometry", *names} - set(option_fields(MethodOptions)))
