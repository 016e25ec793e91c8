"""Patch tokens of a frozen vision transformer (DINO, DINOv2), cut after a block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.branches.branch import Branch
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions

IDENTITY = ("rgb_backbone", "rgb_layers")


def _describe(configuration: Mapping[str, Any]) -> str:
    backbone, layers = (configuration.get(name) for name in IDENTITY)
    return f"{backbone} {layers} layers"


BRANCH = Branch(
    key="rgb",
    options=VitTokenOptions,
    identity=IDENTITY,
    describe=_describe,
    checkpoint=lambda options: options.rgb_backbone,
)
