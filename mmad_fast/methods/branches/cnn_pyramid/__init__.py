"""Feature maps of a frozen convolutional network (WideResNet50-2, EfficientNet-B5), cut after the
last part that is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.branches.branch import Branch
from mmad_fast.methods.branches.cnn_pyramid.options import CnnPyramidOptions

IDENTITY = ("rgb_backbone", "rgb_outputs")


def _describe(configuration: Mapping[str, Any]) -> str:
    backbone, outputs = (configuration.get(name) for name in IDENTITY)
    return f"{backbone} {','.join(map(str, outputs or ()))}"


BRANCH = Branch(
    key="rgb",
    options=CnnPyramidOptions,
    identity=IDENTITY,
    describe=_describe,
    checkpoint=lambda options: options.rgb_backbone,
)
