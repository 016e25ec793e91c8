"""The record of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_fast.methods.family import Family, Fit, Pipeline, Reference, Variant
from mmad_fast.methods.patch_color.options import PatchColorOptions
from mmad_fast.preprocess.recipes import NO_CLEAN_UP

if TYPE_CHECKING:
    from mmad_fast.artifact import Artifact
    from mmad_fast.methods.fit_request import FitTask, Weights


def _pipeline() -> type[Pipeline]:
    from mmad_fast.methods.patch_color.detector import PatchColorPipeline

    return PatchColorPipeline


def _fit(task: FitTask) -> Fit:
    from mmad_fast.methods.patch_color.fit import PatchColorFit

    return PatchColorFit(task)


def _reference(artifact: Artifact, weights: Weights) -> Reference:
    from mmad_fast.methods.patch_color.reference import reference_pipeline

    return reference_pipeline(artifact)


FAMILY = Family(
    name="patch_color",
    variants=(
        Variant("patch-color", "Patch color", ()),
        Variant("patch-color-coarse", "Patch color, coarse", (), {"patch_size": 32}),
    ),
    default="patch-color",
    options=PatchColorOptions,
    branches=(),
    recipe=NO_CLEAN_UP,
    speeds={"exact": {}, "fast": {"patch_size": 32}},
    pipelines={"cpu": _pipeline},
    fit=_fit,
    reference=_reference,
    aupro_thresholds=100,
    score_is_map_maximum=True,
)
