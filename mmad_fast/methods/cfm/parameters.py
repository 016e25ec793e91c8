"""The constants of a CFM detector, as the manifest holds them. Shared by both halves; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from mmad_fast.errors import ArtifactError, InvalidInputError

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

POINT_STATISTICS_PREFIX = "point_statistics."
"""Of the tensors that hold the point backbone's calibrated BatchNorm statistics."""

EMBEDDER_PREFIX = "embedder."
"""Of the tensors that hold the weights of the point embedder."""

KNOWN_VALUES: dict[str, tuple[str | int, ...]] = {
    "aggregation": tuple(PSI_MAPS),
    "mapping": tuple(MAPPINGS),
    "score_norm": ("cfm", "raw"),
    "smoothing": ("boxes53", "sigma4"),
    "batch_norm": ("cloud", "calibrated", "checkpoint"),
    "hidden": ("published", "big"),
    "pixel_stride": (1, 2, 4),
    "precision": ("float32", "int8"),
}


@dataclass(frozen=True)
class CfmParameters:
    """What a CFM detector was fitted with.

    Attributes:
        rgb_backbone: Name in mmad_fast.backbones.
        rgb_size: R, side of the RGB network's input in pixels.
        token_grid: Side of the RGB network's token grid; T = token_grid ** 2.
        rgb_layers: Transformer blocks of the RGB backbone that are kept.
        point_layers: 0-based Point-MAE blocks whose outputs are concatenated.
        grid_size: S, side of the anomaly map in pixels.
        num_groups: G, point groups per scan.
        group_size: K, points per group.
        batch_norm: Statistics of the point embedder's BatchNorm: "cloud", "calibrated" or
            "checkpoint".
        skip_near_origin: Farthest point sampling skips points within 0.0316 m of the origin, as the
            published kernel does.
        aggregation: "product", "sum", "max", "psi_2d" or "psi_3d".
        mapping: "crossmodal" or "intramodal".
        score_norm: "cfm" (divide by the root of the mean non-zero discrepancy) or "raw".
        smoothing: "boxes53" (the published boxes) or "sigma4" (the paper's Gaussian).
        hidden: Width and depth of the mapping networks: "published" or "big".
        pixel_stride: 1, 2 or 4: the discrepancy is computed at one pixel per block of that side and
            holds for the block's other foreground pixels. Above 1 it approximates.
        precision: Of the backbones' matrix products: "float32", or "int8", which approximates.
    """

    rgb_backbone: str
    rgb_size: int
    token_grid: int
    rgb_layers: int
    point_layers: tuple[int, ...]
    grid_size: int = 224
    num_groups: int = 1024
    group_size: int = 128
    batch_norm: Literal["cloud", "calibrated", "checkpoint"] = "cloud"
    skip_near_origin: bool = False
    aggregation: str = "product"
    mapping: str = "crossmodal"
    score_norm: str = "cfm"
    smoothing: str = "boxes53"
    hidden: str = "published"
    pixel_stride: int = 1
    precision: Literal["float32", "int8"] = "float32"

    def __post_init__(self) -> None:
        for name, known in KNOWN_VALUES.items():
            if getattr(self, name) not in known:
                listed = ", ".join(map(str, known))
                raise InvalidInputError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {listed}"
                )
        for name in ("rgb_size", "token_grid", "grid_size", "num_groups", "group_size"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def is_exact(self) -> bool:
        """The detector gives the published pipeline's answer, up to rounding."""
        return self.pixel_stride == 1 and self.precision == "float32"

    @property
    def networks(self) -> dict[str, str]:
        """Network name by discrepancy map, for the maps that the aggregation reads."""
        by_map = MAPPINGS[self.mapping]
        return {psi: by_map[psi] for psi in PSI_MAPS[self.aggregation]}

    def to_dict(self) -> dict[str, Any]:
        """The parameters as JSON types."""
        content = asdict(self)
        content["point_layers"] = list(self.point_layers)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CfmParameters:
        """The parameters in a manifest; keys that are not parameters are left out.

        Raises:
            ArtifactError: a parameter is missing or has a value that this version does not know.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in content]
        if missing:
            raise ArtifactError(
                f"the manifest's parameters lack {', '.join(missing)}; fit the detector again"
            )
        values = {name: content[name] for name in names}
        values["point_layers"] = tuple(int(layer) for layer in content["point_layers"])
        try:
            return cls(**values)
        except InvalidInputError as error:
            raise ArtifactError(
                f"the manifest holds a parameter that this version cannot run: {error}; "
                "upgrade with: pip install --upgrade mmad-fast, or fit again"
            ) from error
