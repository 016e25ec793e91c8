"""Options of the branch; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mmad_fast.methods.options import MethodOptions, option
from mmad_fast.preprocess.recipes import AUXILIARY_PICTURES, Recipe


@dataclass(frozen=True)
class AuxiliaryOptions(MethodOptions):
    """Which pictures of the scan's geometry are read beside RGB.

    Attributes:
        auxiliary: Depth, surface normals, or both, each a picture of its own.
        normals_from: The measured points; TRD's Sobel filter on the depth; or the data set's own
            pictures.
        sobel_size: Side of that filter.
        depth_axis: Along which the camera looks; "y" of Eyecandies as converted.
    """

    auxiliary: Literal["depth", "normals", "both"] = option(
        "depth", "Pictures of the geometry beside RGB.", in_rows=True
    )
    normals_from: Literal["points", "sobel", "images"] = option(
        "points", "What surface normals are computed from; images are the data set's own.",
        in_rows=True,
    )  # fmt: skip
    sobel_size: Literal[3, 5, 7] = option(5, "Side of TRD's Sobel filter.", in_rows=True)
    depth_axis: Literal["z", "y"] = option(
        "z", "Axis along which the camera looks; y of Eyecandies, raw or converted.", in_rows=True
    )

    @property
    def auxiliary_pictures(self) -> tuple[str, ...]:
        """Which pictures are read, in the order of PreparedScan.auxiliary."""
        return AUXILIARY_PICTURES if self.auxiliary == "both" else (self.auxiliary,)

    def prepared_by(self, recipe: Recipe) -> Recipe:
        """See MethodOptions: a recipe that makes the pictures."""
        pictures = self.auxiliary_pictures
        normals_from = self.normals_from if "normals" in pictures else Recipe.normals_from
        sobel_size = self.sobel_size if normals_from == "sobel" else Recipe.sobel_size
        reads_points = bool(pictures) and (pictures, normals_from) != (("normals",), "images")
        return replace(
            super().prepared_by(recipe),
            auxiliary=pictures,
            normals_from=normals_from,
            sobel_size=sobel_size,
            depth_axis=self.depth_axis if reads_points else Recipe.depth_axis,
        )

    def without_effect(self) -> Mapping[str, str]:
        """See MethodOptions."""
        idle = dict(super().without_effect())
        if not self.auxiliary_pictures:
            idle |= dict.fromkeys(("auxiliary", "depth_axis"), "RGB alone is read")
        elif self.auxiliary == "normals" and self.normals_from == "images":
            idle["depth_axis"] = "no points are read"
        if "normals" not in self.auxiliary_pictures:
            idle["normals_from"] = "no normals are read"
        elif self.normals_from != "sobel":
            idle["sobel_size"] = "normals_from is not 'sobel'"
        if "normals" not in self.auxiliary_pictures:
            idle["sobel_size"] = "no normals are read"
        return idle
