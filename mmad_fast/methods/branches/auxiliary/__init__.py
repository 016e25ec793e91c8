"""Depth and surface normals of a scan as pictures, which networks for RGB can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.branches.auxiliary.options import AuxiliaryOptions
from mmad_fast.methods.branches.branch import Branch


def _describe(configuration: Mapping[str, Any]) -> str:
    return f"with {configuration.get('auxiliary')}"


BRANCH = Branch(
    key="aux",
    options=AuxiliaryOptions,
    identity=(),
    describe=_describe,
    checkpoint=None,
)
