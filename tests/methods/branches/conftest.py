"""What the tests of the branches share: an artifact with both of them, and a scan for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_arrays

from mmad_fast.artifact import Artifact, read_artifact
from mmad_fast.detector import load
from mmad_fast.engines.selection import EngineChoice, choose_engine
from mmad_fast.methods.fit_request import FitRequest, FitTask, silent
from mmad_fast.scan import PreparedScan, Scan

SMALL = {
    "rgb_backbone": "dinov2-vits14",
    "rgb_layers": 1,
    "num_groups": 32,
    "group_size": 16,
    "rgb_weights": "random",
    "point_weights": "random",
    "recipe": "none",
}
"""Of a detector that both branches run, with few groups."""


@pytest.fixture
def artifact(tiny_artifact: Path) -> Artifact:
    return read_artifact(tiny_artifact)


@pytest.fixture
def choice(artifact: Artifact) -> EngineChoice:
    return choose_engine(artifact.engine_files(), engine="onnxruntime", num_threads=1)


@pytest.fixture
def prepared(tiny_artifact: Path) -> PreparedScan:
    return load(tiny_artifact).prepare(Scan.from_arrays(*make_arrays()))


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., FitTask]:
    """(training scans, options beside the small ones) -> the task of a fit."""

    def make(train: list[Scan], **chosen: Any) -> FitTask:
        request = FitRequest.of("cfm-t", **{**SMALL, **chosen})
        return FitTask.of(request, train, tmp_path, silent)

    return make
