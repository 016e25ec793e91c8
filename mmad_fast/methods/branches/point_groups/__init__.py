"""Features of point groups by a frozen Point-MAE, and how each point mixes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.branches.branch import Branch
from mmad_fast.methods.branches.point_groups.options import PointGroupOptions

CHECKPOINT = "point-mae"
IDENTITY = ("point_layers",)


def _describe(configuration: Mapping[str, Any]) -> str:
    blocks = ", ".join(str(block) for block in configuration.get(IDENTITY[0], ()))
    return f"blocks {blocks}"


BRANCH = Branch(
    key="point",
    options=PointGroupOptions,
    identity=IDENTITY,
    describe=_describe,
    checkpoint=lambda options: CHECKPOINT,
)
