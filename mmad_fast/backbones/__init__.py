"""Torch networks that load the official checkpoints. Importing this imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmad_fast.backbones.table import CNN_BACKBONES, RGB_BACKBONES, CnnSpec, RgbSpec
from mmad_fast.backbones.weights import (
    KnownWeights,
    WeightsSource,
    known_weights,
    resolve_weights,
)

if TYPE_CHECKING:
    from mmad_fast.backbones.cnn import build_cnn_backbone
    from mmad_fast.backbones.dino import build_rgb_backbone
    from mmad_fast.backbones.point_mae import build_point_backbone

__all__ = [
    "CNN_BACKBONES",
    "RGB_BACKBONES",
    "CnnSpec",
    "KnownWeights",
    "RgbSpec",
    "WeightsSource",
    "build_cnn_backbone",
    "build_point_backbone",
    "build_rgb_backbone",
    "known_weights",
    "resolve_weights",
]

_BUILDERS = {
    "build_cnn_backbone": "cnn",
    "build_rgb_backbone": "dino",
    "build_point_backbone": "point_mae",
}


def __getattr__(name: str) -> Any:
    """What needs torch, imported at its first use."""
    if name not in _BUILDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_BUILDERS[name]}"), name)
