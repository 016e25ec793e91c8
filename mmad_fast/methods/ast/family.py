"""The record of the family: asymmetric student-teacher networks (WACV 2023). Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_fast.methods.ast.options import AstOptions
from mmad_fast.methods.branches import cnn_pyramid
from mmad_fast.methods.family import Family, Fit, Pipeline, Reference, SpeedOnlyFit, Variant
from mmad_fast.preprocess.recipes import Recipe

if TYPE_CHECKING:
    from mmad_fast.artifact import Artifact
    from mmad_fast.methods.fit_request import FitTask, Weights


def _pipeline() -> type[Pipeline]:
    from mmad_fast.methods.ast.detector import AstPipeline

    return AstPipeline


def _device_pipeline() -> type[Pipeline]:
    from mmad_fast.methods.ast.device_detector import DeviceAstPipeline

    return DeviceAstPipeline


def _fit(task: FitTask) -> Fit:
    from mmad_fast.methods.ast.fit import AstFit

    return AstFit(task)


def _reference(artifact: Artifact, weights: Weights) -> Reference:
    from mmad_fast.methods.ast.reference import reference_pipeline

    return reference_pipeline(artifact, weights)


FAMILY = Family(
    name="ast",
    # Source: method facts 9.2 (the modes of the public code).
    variants=(
        Variant("ast", "AST", ("rgb",)),
        Variant("ast-rgb", "AST (RGB only)", ("rgb",), {"reads_depth": False}),
        Variant("ast-depth", "AST (3D only)", (), {"reads_rgb": False}),
    ),
    default="ast",
    options=AstOptions,
    branches=(cnn_pyramid.BRANCH,),
    # Source: method facts 9.2.
    recipe=Recipe(
        "ast",
        remove_background=False,
        rgb_background="keep",
        rgb_padding="edge",
        squaring="stretching",
        rgb_filter="bilinear",
        depth_plane_m=0.007,
    ),
    # What each gains and costs stands in README.md.
    speeds={"exact": {}, "fast": {"student_channels": 256}, "small": {"student_channels": 128}},
    pipelines={"cpu": _pipeline, "cuda": _device_pipeline},
    fit=_fit,
    reference=_reference,
    aupro_thresholds=100,
    score_is_map_maximum=True,
    speed_only=SpeedOnlyFit(train_scans=2, values={"epochs": 1}),
    resumes=True,
)
