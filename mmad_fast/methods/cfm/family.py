"""The record of the family: crossmodal feature mapping (CVPR 2024). Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_fast.methods.branches import fpfh, organised_normals, point_groups, vit_tokens
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.family import Family, Fit, Pipeline, Reference, SpeedOnlyFit, Variant
from mmad_fast.preprocess.recipes import Recipe

if TYPE_CHECKING:
    from mmad_fast.artifact import Artifact
    from mmad_fast.methods.fit_request import FitTask, Weights


def _variant(name: str, published: str, rgb_layers: int, point_layers: tuple[int, ...]) -> Variant:
    values = {"rgb_layers": rgb_layers, "point_layers": point_layers}
    return Variant(name, published, ("rgb", "point"), values)


def _by_formula(name: str, branches: tuple[str, ...], geometry: str) -> Variant:
    values = {"rgb_backbone": "dinov2-vits14", "rgb_layers": 8, "geometry": geometry}
    return Variant(name, None, branches, values)


def _pipeline() -> type[Pipeline]:
    from mmad_fast.methods.cfm.detector import CfmPipeline

    return CfmPipeline


def _device_pipeline() -> type[Pipeline]:
    from mmad_fast.methods.cfm.device_detector import DeviceCfmPipeline

    return DeviceCfmPipeline


def _fit(task: FitTask) -> Fit:
    from mmad_fast.methods.cfm.fit import CfmFit

    return CfmFit(task)


def _reference(artifact: Artifact, weights: Weights) -> Reference:
    from mmad_fast.methods.cfm.reference import reference_pipeline

    return reference_pipeline(artifact, weights)


FAMILY = Family(
    name="cfm",
    # Source: method facts 3.1 (layers kept and the Point-MAE triples of the CFM release).
    variants=(
        _variant("cfm", "CFM", 12, (3, 7, 11)),
        _variant("cfm-m", "CFM-M", 8, (1, 4, 7)),
        _variant("cfm-s", "CFM-S", 4, (1, 2, 3)),
        _variant("cfm-t", "CFM-T", 1, (0,)),
        # Our own, not in a paper: without Point-MAE. README.md has what they were chosen by.
        _by_formula("cfm-normals", ("rgb", "normals"), "normals"),
        _by_formula("cfm-fpfh", ("rgb", "normals", "fpfh"), "fpfh"),
    ),
    default="cfm-s",
    options=CfmOptions,
    branches=(
        vit_tokens.BRANCH,
        point_groups.BRANCH,
        organised_normals.BRANCH,
        fpfh.BRANCH,
    ),
    # Source: method facts 1.2 (table of what is saved) and 1.3.
    recipe=Recipe("cfm", remove_background=True, rgb_background="keep", rgb_padding="edge"),
    # What each gains and costs stands in docs/benchmarks/detectors.md.
    speeds={
        "exact": {},
        "fast": {"pixel_stride": 2, "precision": "int8"},
        "small": {"precision": "int8"},
    },
    pipelines={"cpu": _pipeline, "cuda": _device_pipeline},
    fit=_fit,
    reference=_reference,
    aupro_thresholds=99,
    score_is_map_maximum=True,
    speed_only=SpeedOnlyFit(train_scans=2, values={"epochs": 1}),
)
