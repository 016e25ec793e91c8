"""The detectors by name: what differs between them stands in this table, not in branches."""

from __future__ import annotations

from dataclasses import dataclass

from mmad_fast.errors import InvalidInputError


@dataclass(frozen=True)
class Variant:
    """One named detector.

    Attributes:
        name: As in `--method` and in the manifest.
        family: The folder under mmad_fast/methods.
        rgb_backbone: Name in mmad_fast.backbones.
        rgb_layers: Transformer blocks of the RGB backbone that are kept.
        point_layers: 0-based Point-MAE blocks whose outputs are concatenated; blocks after the
            last are cut.
        published: The method's name in the published tables (measure/published.csv).
    """

    name: str
    family: str
    rgb_backbone: str
    rgb_layers: int
    point_layers: tuple[int, ...]
    published: str


# Source: method_facts 3.1 (layers kept and the Point-MAE triples of the CFM release).
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("cfm", "cfm", "dino-vitb8", 12, (3, 7, 11), "CFM"),
        Variant("cfm-m", "cfm", "dino-vitb8", 8, (1, 4, 7), "CFM-M"),
        Variant("cfm-s", "cfm", "dino-vitb8", 4, (1, 2, 3), "CFM-S"),
        Variant("cfm-t", "cfm", "dino-vitb8", 1, (0,), "CFM-T"),
    )
}

FAMILY_DETECTORS: dict[str, dict[str, str]] = {
    "cfm": {
        "cpu": "mmad_fast.methods.cfm.detector:CfmPipeline",
        "cuda": "mmad_fast.methods.cfm.device_detector:DeviceCfmPipeline",
    }
}
"""Run half of each family by device: a class with `from_artifact` and `score`. Imported when
loaded."""

FAMILY_FITS: dict[str, str] = {"cfm": "mmad_fast.methods.cfm.fit:fit_cfm"}
"""Fit half of each family. Imported when a detector is fitted; needs torch."""

FAMILY_REFERENCES: dict[str, str] = {"cfm": "mmad_fast.methods.cfm.reference:reference_pipeline"}
"""Published pipeline of each family, for comparisons. Needs torch."""


def get_variant(name: str) -> Variant:
    """The variant of that name.

    Raises:
        InvalidInputError: no such name; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        raise InvalidInputError(f"there is no method {name!r}; known are {', '.join(VARIANTS)}")
    return VARIANTS[name]
