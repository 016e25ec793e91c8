"""Fast point feature histograms of a scan's points: by formula, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.branches.branch import Branch
from mmad_fast.methods.branches.fpfh.options import FpfhOptions
from mmad_fast.methods.options import option_fields

IDENTITY = tuple(name for name in option_fields(FpfhOptions) if name.startswith("fpfh_"))


def _describe(configuration: Mapping[str, Any]) -> str:
    neighbors = configuration.get("fpfh_neighbors")
    return f"FPFH of {neighbors} neighbours, {configuration.get('fpfh_orientation')} normals"


BRANCH = Branch(
    key="fpfh",
    options=FpfhOptions,
    identity=IDENTITY,
    describe=_describe,
    checkpoint=None,
)
