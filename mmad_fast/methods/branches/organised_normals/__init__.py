"""Surface normals of a scan's pixel grid by formula, from the differences of its points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.branches.branch import Branch
from mmad_fast.methods.branches.organised_normals.options import OrganisedNormalsOptions

IDENTITY = ("normals_sigma",)


def _describe(configuration: Mapping[str, Any]) -> str:
    return f"normals of points smoothed by {configuration.get(IDENTITY[0])} pixels"


BRANCH = Branch(
    key="normals",
    options=OrganisedNormalsOptions,
    identity=IDENTITY,
    describe=_describe,
    checkpoint=None,
)
