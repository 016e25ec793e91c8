"""Torch networks that load the official checkpoints. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmad_fast.backbones.table import RGB_BACKBONES, RgbSpec
from mmad_fast.backbones.weights import (
    KnownWeights,
    WeightsSource,
    known_weights,
    resolve_weights,
)

if TYPE_CHECKING:
    from mmad_fast.backbones.dino import VisionTransformer as RgbBackbone
    from mmad_fast.backbones.point_mae import PointMae

__all__ = [
    "RGB_BACKBONES",
    "KnownWeights",
    "RgbSpec",
    "WeightsSource",
    "build_point_backbone",
    "build_rgb_backbone",
    "known_weights",
    "resolve_weights",
]


def build_rgb_backbone(
    name: str,
    *,
    num_layers: int,
    weights: str | Path = "auto",
    image_size: int | None = None,
    seed: int = 0,
    offline: bool = False,
) -> RgbBackbone:
    """A vision transformer cut after `num_layers` blocks, frozen, in evaluation mode.

    It maps images (B, 3, R, R) float32 to tokens (B, T, C) float32 after the final norm, class
    token dropped. Attributes: name, image_size, token_grid, dim, num_layers, weights_source.

    Args:
        name: One of RGB_BACKBONES.
        num_layers: Blocks to keep, 1-12.
        weights: "auto" (the user's cache, else the owner's download), "random" (seeded), or the
            path of the official .pth or a .safetensors file with the official keys.
        image_size: R in pixels, a multiple of the patch size; None for the size that gives
            28 x 28 tokens. The position embedding is resized once, here.
        seed: Of random weights.
        offline: With "auto": look into the cache only.

    Raises:
        InvalidInputError: unknown name, or num_layers or image_size out of range.
        WeightsError: the weights are missing, unreadable, do not fit, or cannot be downloaded.

    Source: method facts, section 2 (backbone and its cut as in CFM).
    """
    from mmad_fast.backbones.dino import build_vision_transformer

    return build_vision_transformer(
        name,
        num_layers=num_layers,
        weights=weights,
        image_size=image_size,
        seed=seed,
        offline=offline,
    )


def build_point_backbone(
    *,
    layers: tuple[int, ...],
    weights: str | Path = "auto",
    batch_norm: Literal["cloud", "calibrated", "checkpoint"] = "cloud",
    drop_path: Literal["off", "seeded"] = "off",
    seed: int = 0,
    offline: bool = False,
) -> PointMae:
    """Point-MAE cut after its last fetched block, frozen.

    It maps groups (B, G, K, 3) float32, centred, and centers (B, G, 3) float32, both in metres,
    to features (B, G, 384 * len(layers)) float32. Attributes: layers, dim, batch_norm,
    weights_source.

    Args:
        layers: 0-based blocks whose outputs are normed and concatenated, ascending.
        weights: "auto", "random", or the path of the official pretrain.pth (or a .safetensors file
            with its keys).
        batch_norm: "cloud": statistics of the clouds of the call, as the published pipelines do;
            "calibrated": frozen by `.calibrate(clouds)`; "checkpoint": running statistics of the
            checkpoint (0 and 1 with random weights).
        drop_path: "off", or "seeded": residual branches are dropped as in the published pipelines,
            which never leave train mode. For the reference pipeline; cannot be exported.
        seed: Of random weights and of the dropped branches.
        offline: With "auto": look into the cache only.

    Raises:
        InvalidInputError: layers or a mode is not a known one.
        WeightsError: the weights are missing, unreadable, do not fit, or cannot be downloaded.

    Source: method facts, sections 0.1 and 3.
    """
    from mmad_fast.backbones.point_mae import build_point_mae

    return build_point_mae(
        layers=layers,
        weights=weights,
        batch_norm=batch_norm,
        drop_path=drop_path,
        seed=seed,
        offline=offline,
    )
