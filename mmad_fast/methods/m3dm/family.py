"""The record of the family: M3DM (CVPR 2023), memory banks and their hybrid fusion. Imports no
torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmad_fast.methods.branches import point_groups, vit_tokens
from mmad_fast.methods.family import (
    Family,
    Fit,
    Pipeline,
    Reference,
    SharedTraining,
    SharedTrainingResult,
    Variant,
)
from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.preprocess.recipes import Recipe

if TYPE_CHECKING:
    from mmad_fast.artifact import Artifact
    from mmad_fast.data.dataset import Dataset
    from mmad_fast.methods.fit_request import FitRequest, FitTask, Progress, Weights

_RGB, _POINT, _BOTH = ("rgb",), ("point",), ("rgb", "point")
_POINT_SETTING = ("group_size", "num_groups", "point_patches")
_POINT_SETTINGS: dict[tuple[Any, ...], str] = {
    (64, 784, "groups"): "64 points/784 groups, point groups",
    (128, 1024, "groups"): "128 points/1024 groups, point groups",
    (64, 784, "28x28"): "64 points/784 groups, 28x28 patches",
    (128, 1024, "28x28"): "128 points/1024 groups, 28x28 patches",
}
"""Rows of M3DM's Table 5 besides its usual setting, by _POINT_SETTING."""


def _variant(
    name: str, banks: tuple[str, ...], decision: str, published: str, branches: tuple[str, ...]
) -> Variant:
    return Variant(name, published, branches, {"banks": banks, "decision": decision})


def _pipeline() -> type[Pipeline]:
    from mmad_fast.methods.m3dm.detector import M3dmPipeline

    return M3dmPipeline


def _device_pipeline() -> type[Pipeline]:
    from mmad_fast.methods.m3dm.device_detector import DeviceM3dmPipeline

    return DeviceM3dmPipeline


def _fit(task: FitTask) -> Fit:
    from mmad_fast.methods.m3dm.fit import M3dmFit

    return M3dmFit(task)


def _reference(artifact: Artifact, weights: Weights) -> Reference:
    from mmad_fast.methods.m3dm.reference import reference_pipeline

    return reference_pipeline(artifact, weights)


def _train_fusion(
    dataset: Dataset,
    categories: Sequence[str],
    request: FitRequest,
    output: Path,
    progress: Progress,
) -> SharedTrainingResult:
    from mmad_fast.methods.m3dm.shared_fusion import train_shared_uff

    return train_shared_uff(dataset, categories, request, output, progress=progress)


def _published_name(variant: Variant, configuration: Mapping[str, Any]) -> str | None:
    """The variant's, or that of a row of M3DM's Tables 2 and 5 that its options make."""
    if variant.name == "m3dm-fusion" and configuration.get("uses_uff") is False:
        return "M3DM (one fused bank, without UFF)"
    setting = _POINT_SETTINGS.get(tuple(configuration.get(key) for key in _POINT_SETTING))
    if variant.name == "m3dm-3d" and setting is not None:
        return f"M3DM (3D only, {setting})"
    return variant.published


FAMILY = Family(
    name="m3dm",
    # Source: method facts 5.1 (the method names of M3DM's code and the columns of its tables).
    variants=(
        _variant("m3dm", ("point", "rgb", "fusion"), "svm", "M3DM", _BOTH),
        _variant("m3dm-rgb", ("rgb",), "single", "M3DM (RGB only)", _RGB),
        _variant("m3dm-3d", ("point",), "single", "M3DM (3D only)", _POINT),
        _variant("m3dm-fusion", ("fusion",), "single", "M3DM (one fused bank, with UFF)", _BOTH),
        _variant("m3dm-rgb+3d", ("point", "rgb"), "svm", "M3DM (two banks, with DLF)", _BOTH),
        _variant(
            "m3dm-rgb+3d-add", ("point", "rgb"), "sum", "M3DM (two banks, without DLF)", _BOTH
        ),
    ),
    default="m3dm",
    options=M3dmOptions,
    branches=(vit_tokens.BRANCH, point_groups.BRANCH),
    # Source: method facts 1.2 (table of what is saved) and 1.3.
    recipe=Recipe("m3dm", remove_background=True, rgb_background="black", rgb_padding="zero"),
    # What each gains and costs stands in docs/benchmarks/m3dm_accuracy.md: banks of float16 are
    # smaller, not faster.
    speeds={
        "exact": {},
        "fast": {"precision": "int8"},
        "small": {"precision": "int8", "bank_dtype": "float16"},
    },
    pipelines={"cpu": _pipeline, "cuda": _device_pipeline},
    fit=_fit,
    reference=_reference,
    aupro_thresholds=100,
    score_is_map_maximum=False,
    # Not shortened for timing: the memory banks grow with the training scans.
    shared_training=SharedTraining(
        what="the unsupervised feature fusion (UFF), one for all categories, as published",
        option="uff",
        file_name="uff.safetensors",
        wants=lambda options: options.trains_uff,
        train=_train_fusion,
    ),
    published_name=_published_name,
)
