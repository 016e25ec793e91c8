"""The record of the family: BTF (CVPR-W 2023), one memory bank of colour features and point
histograms. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_fast.methods.branches import cnn_pyramid, fpfh
from mmad_fast.methods.btf.options import BtfOptions
from mmad_fast.methods.family import Family, Fit, Pipeline, Reference, Variant
from mmad_fast.preprocess.recipes import Recipe

if TYPE_CHECKING:
    from mmad_fast.artifact import Artifact
    from mmad_fast.methods.fit_request import FitTask, Weights


def _variant(name: str, published: str, *features: str) -> Variant:
    return Variant(name, published, features, {"features": features})


def _pipeline() -> type[Pipeline]:
    from mmad_fast.methods.btf.detector import BtfPipeline

    return BtfPipeline


def _device_pipeline() -> type[Pipeline]:
    from mmad_fast.methods.btf.device_detector import DeviceBtfPipeline

    return DeviceBtfPipeline


def _fit(task: FitTask) -> Fit:
    from mmad_fast.methods.btf.fit import BtfFit

    return BtfFit(task)


def _reference(artifact: Artifact, weights: Weights) -> Reference:
    from mmad_fast.methods.btf.reference import reference_pipeline

    return reference_pipeline(artifact, weights)


FAMILY = Family(
    name="btf",
    # Source: method facts 9.1 (names of the published table of README.md).
    variants=(
        _variant("btf", "BTF", "rgb", "fpfh"),
        _variant("btf-rgb", "BTF (RGB only)", "rgb"),
        _variant("btf-fpfh", "BTF (FPFH only)", "fpfh"),
    ),
    default="btf",
    options=BtfOptions,
    branches=(cnn_pyramid.BRANCH, fpfh.BRANCH),
    # Source: method facts 1.2 (table of what is saved) and 1.3: as M3DM's, which took it from here.
    recipe=Recipe("btf", remove_background=True, rgb_background="black", rgb_padding="zero"),
    speeds={
        "exact": {},
        "fast": {"precision": "int8", "coreset_fraction": 0.02, "fpfh_neighbors": 50},
        "small": {"precision": "int8", "coreset_fraction": 0.02, "bank_dtype": "float16"},
    },
    pipelines={"cpu": _pipeline, "cuda": _device_pipeline},
    fit=_fit,
    reference=_reference,
    aupro_thresholds=100,
    score_is_map_maximum=False,
)
