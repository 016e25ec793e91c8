"""Feature maps of three depths of a frozen network, of RGB and of other pictures of the scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.branches.branch import Branch
from mmad_fast.methods.branches.feature_levels.options import FeatureLevelOptions

IDENTITY = ("rgb_backbone", "rgb_levels")


def _describe(configuration: Mapping[str, Any]) -> str:
    backbone, levels = (configuration.get(name) for name in IDENTITY)
    return f"{backbone} {','.join(map(str, levels or ()))}"


BRANCH = Branch(
    key="rgb",
    options=FeatureLevelOptions,
    identity=IDENTITY,
    describe=_describe,
    checkpoint=lambda options: options.rgb_backbone,
)
