"""The record of the family: reverse distillation of several modalities (MMRD, AAAI 2024; TRD, 2025)
and of RGB alone (RD4AD, CVPR 2022), and forward distillation. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmad_fast.methods.branches import auxiliary, feature_levels
from mmad_fast.methods.family import Family, Fit, Pipeline, Reference, SpeedOnlyFit, Variant
from mmad_fast.methods.mmrd.options import MmrdOptions
from mmad_fast.preprocess.recipes import Recipe

if TYPE_CHECKING:
    from mmad_fast.artifact import Artifact
    from mmad_fast.methods.fit_request import FitTask, Weights


def _pipeline() -> type[Pipeline]:
    from mmad_fast.methods.mmrd.detector import MmrdPipeline

    return MmrdPipeline


def _device_pipeline() -> type[Pipeline]:
    from mmad_fast.methods.mmrd.device_detector import DeviceMmrdPipeline

    return DeviceMmrdPipeline


def _fit(task: FitTask) -> Fit:
    from mmad_fast.methods.mmrd.fit import MmrdFit

    return MmrdFit(task)


def _reference(artifact: Artifact, weights: Weights) -> Reference:
    from mmad_fast.methods.mmrd.reference import reference_pipeline

    return reference_pipeline(artifact, weights)


_PICTURES = {"depth": "depth", "normals": "normals", "both": "depth + normals"}

_ABLATIONS: Mapping[str, Mapping[Any, str]] = {
    "prototypes": {
        (0, 0, 0): "teacher only",
        (10, 10, 10): "10, 10, 10 prototypes",
        (10, 50, 100): "10, 50, 100 prototypes",
        (100, 50, 10): "100, 50, 10 prototypes",
        (100, 100, 100): "100, 100, 100 prototypes",
    },
    "interaction": {False: "priors without interaction"},
    "adapts": {
        "none": "statistics of ImageNet",
        "auxiliary": "own statistics of normals alone",
        "rgb": "own statistics of RGB alone",
    },
    "fusion": {
        "csa": "channel self-attention",
        "ssa": "spatial self-attention",
        "constant": "alpha = 1",
        "auxiliary": "alpha of the second modality",
        "se": "SE module",
    },
}
"""What MMRD's Table 2 changes, one at a time, of the detector with RGB and normals."""


def _published_name(variant: Variant, configuration: Mapping[str, Any]) -> str | None:
    """The variant's, with the pictures of the geometry that it reads: each choice of them is a
    setting of its own in the papers, and so is each ablation."""
    pictures = _PICTURES.get(configuration.get("auxiliary", ""))
    published = variant.published
    if configuration.get("student_width", 1.0) != 1.0:
        return None
    if published is None or pictures is None or variant.name not in ("mmrd", "mmrd-aux", "trd"):
        return published
    paper, _, _ = published.partition(" (")
    if variant.values.get("modalities") == "aux":
        return f"{paper} ({pictures} only)"
    own = MmrdOptions(**variant.values).with_constants()
    ablated = {
        name: configuration[name]
        for name in _ABLATIONS
        if name in configuration and _hashable(configuration[name]) != getattr(own, name)
    }
    if not ablated:
        return f"{paper} (RGB + {pictures})"
    if len(ablated) > 1 or variant.name != "mmrd" or pictures != "normals":
        return None
    ((name, value),) = ablated.items()
    ablation = _ABLATIONS[name].get(_hashable(value))
    return None if ablation is None else f"{paper} ({ablation})"


def _hashable(value: Any) -> Any:
    """A list, which JSON makes of a tuple, as a tuple."""
    return tuple(value) if isinstance(value, list) else value


FAMILY = Family(
    name="mmrd",
    # Source: method facts 8; the rows of MMRD's tables 1 and 2c.
    variants=(
        Variant("mmrd", "MMRD (RGB + depth)", ("rgb", "aux")),
        Variant("mmrd-rgb", "MMRD (RGB only)", ("rgb",), {"modalities": "rgb"}),
        Variant("mmrd-aux", "MMRD (depth only)", ("rgb", "aux"), {"modalities": "aux"}),
        Variant(
            "trd",
            "TRD (RGB + normals)",
            ("rgb", "aux"),
            {
                "distillation": "trd",
                "auxiliary": "normals",
                "normals_from": "sobel",
                "adapts": "none",
            },
        ),
        Variant(
            "rd", "RD", ("rgb",), {"distillation": "rd", "modalities": "rgb", "adapts": "none"}
        ),
        Variant(
            "fd", "FD", ("rgb",), {"distillation": "forward", "modalities": "rgb", "adapts": "none"}
        ),
        Variant("mmfd", "MMFD", ("rgb", "aux"), {"distillation": "forward"}),
    ),
    default="mmrd",
    options=MmrdOptions,
    branches=(feature_levels.BRANCH, auxiliary.BRANCH),
    # Source: method facts 8.3, TRD's; MMRD's paper says only 256 x 256.
    recipe=Recipe(
        "mmrd",
        remove_background=False,
        rgb_background="keep",
        rgb_padding="edge",
        squaring="stretching",
        rgb_filter="bilinear",
    ),
    # What each gains and costs stands in README.md.
    speeds={"exact": {}, "fast": {"student_width": 0.5}, "small": {"student_width": 0.25}},
    pipelines={"cpu": _pipeline, "cuda": _device_pipeline},
    fit=_fit,
    reference=_reference,
    aupro_thresholds=100,
    score_is_map_maximum=True,
    speed_only=SpeedOnlyFit(train_scans=2, values={"epochs": 1}),
    resumes=True,
    stores_halves=True,
    published_name=_published_name,
)
