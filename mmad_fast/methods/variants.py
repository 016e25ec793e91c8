"""The detectors by name: what differs between them stands in this table, not in branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        modalities: Backbones that it runs: "rgb", "point" or both.
        settings: What else its name stands for, as its family reads it. M3DM: "banks", the memory
            banks in the order of the published code's columns, and "decision", how their scores
            become one: "single" bank, plain "sum", or "svm" (the decision layer).
    """

    name: str
    family: str
    rgb_backbone: str
    rgb_layers: int
    point_layers: tuple[int, ...]
    published: str
    modalities: tuple[str, ...] = ("rgb", "point")
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


def _m3dm(
    name: str,
    banks: tuple[str, ...],
    decision: str,
    published: str,
    modalities: tuple[str, ...] = ("rgb", "point"),
) -> Variant:
    settings = {"banks": banks, "decision": decision}
    return Variant(
        name, "m3dm", "dino-vitb8", 12, (3, 7, 11), published, modalities=modalities,
        settings=settings,
    )  # fmt: skip


# Source: method_facts 3.1 (layers kept and the Point-MAE triples of the CFM release) and 5.1 (the
# method names of M3DM's code and the columns of its tables).
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("cfm", "cfm", "dino-vitb8", 12, (3, 7, 11), "CFM"),
        Variant("cfm-m", "cfm", "dino-vitb8", 8, (1, 4, 7), "CFM-M"),
        Variant("cfm-s", "cfm", "dino-vitb8", 4, (1, 2, 3), "CFM-S"),
        Variant("cfm-t", "cfm", "dino-vitb8", 1, (0,), "CFM-T"),
        _m3dm("m3dm", ("point", "rgb", "fusion"), "svm", "M3DM"),
        _m3dm("m3dm-rgb", ("rgb",), "single", "M3DM (RGB only)", ("rgb",)),
        _m3dm("m3dm-3d", ("point",), "single", "M3DM (3D only)", ("point",)),
        _m3dm("m3dm-fusion", ("fusion",), "single", "M3DM (one fused bank, with UFF)"),
        _m3dm("m3dm-rgb+3d", ("point", "rgb"), "svm", "M3DM (two banks, with DLF)"),
        _m3dm("m3dm-rgb+3d-add", ("point", "rgb"), "sum", "M3DM (two banks, without DLF)"),
    )
}

FAMILY_DETECTORS: dict[str, dict[str, str]] = {
    "cfm": {
        "cpu": "mmad_fast.methods.cfm.detector:CfmPipeline",
        "cuda": "mmad_fast.methods.cfm.device_detector:DeviceCfmPipeline",
    },
    "m3dm": {
        "cpu": "mmad_fast.methods.m3dm.detector:M3dmPipeline",
        "cuda": "mmad_fast.methods.m3dm.device_detector:DeviceM3dmPipeline",
    },
}
"""Run half of each family by device: a class with `from_artifact` and `score`. Imported when
loaded."""

FAMILY_FITS: dict[str, str] = {
    "cfm": "mmad_fast.methods.cfm.fit:fit_cfm",
    "m3dm": "mmad_fast.methods.m3dm.fit:fit_m3dm",
}
"""Fit half of each family. Imported when a detector is fitted; needs torch."""

FAMILY_OPTIONS: dict[str, str] = {
    "cfm": "mmad_fast.methods.cfm.fit_options:CfmFitOptions",
    "m3dm": "mmad_fast.methods.m3dm.fit_options:M3dmFitOptions",
}
"""What may be chosen when a family is fitted: a record whose `of` reads a FitRequest, see
methods/fit_options.py. Imported when a request is checked; needs torch."""

FAMILY_REFERENCES: dict[str, str] = {
    "cfm": "mmad_fast.methods.cfm.reference:reference_pipeline",
    "m3dm": "mmad_fast.methods.m3dm.reference:reference_pipeline",
}
"""Published pipeline of each family, for comparisons. Needs torch."""

FAMILY_SHARED_TRAINING: dict[str, str] = {
    "m3dm": "mmad_fast.methods.m3dm.uff_categories:train_for_categories",
}
"""What a family trains once for several categories: (dataset, categories, request, output folder,
progress) -> the request that its fits get. Families without any are not in here. Needs torch."""

FAMILY_SPEED_ONLY: dict[str, dict[str, int]] = {"cfm": {"max_train_scans": 2, "epochs": 1}}
"""What shortens a family's fit without a change to its detector's speed. Families that are not in
here are fitted whole: the memory banks of M3DM grow with the training scans."""

FAMILY_AUPRO_THRESHOLDS: dict[str, int] = {"cfm": 99, "m3dm": 100}
"""Thresholds of each family's published AUPRO. Source: method facts, section 10."""

FAMILIES_SCORED_BY_MAXIMUM = frozenset({"cfm"})
"""Families whose image score is the largest value of the anomaly map: the decision threshold is one
of the map, too."""


def variants_of(family: str) -> dict[str, Variant]:
    """The variants of a family by name, in the table's order."""
    return {name: variant for name, variant in VARIANTS.items() if variant.family == family}


def get_variant(name: str) -> Variant:
    """The variant of that name.

    Raises:
        InvalidInputError: no such name; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        raise InvalidInputError(f"there is no method {name!r}; known are {', '.join(VARIANTS)}")
    return VARIANTS[name]
