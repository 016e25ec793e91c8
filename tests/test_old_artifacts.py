"""Artifacts of older schemas still load and give the answers that were recorded when they were
made; fixtures/make_schema3_artifacts.py made them."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mmad_fast import _kernels, load
from mmad_fast.artifact import read_artifact
from mmad_fast.errors import ArtifactError
from mmad_fast.measure.environment import cpu_model
from mmad_fast.missing_values import MissingRecord
from mmad_fast.whole_folder import DIGEST_KEY, MANIFEST_FILE, write_manifest

FIXTURES = Path(__file__).parent / "fixtures"
ROUNDING = 1e-5
"""Of the answer on another processor or with other libraries than it was recorded with."""


@pytest.fixture(params=["schema3_cfm", "schema3_m3dm"])
def old_artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(FIXTURES / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / request.param


def made_here(artifact: Path) -> bool:
    """Whether this machine computes with the same kernels as the one that recorded the answer."""
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "instruction_set": _kernels.best_instruction_set().name,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
    recorded = json.loads((artifact.parent / f"{artifact.name}.json").read_text())
    return bool(recorded == facts)


def test_the_golden_scan_gives_the_recorded_answer(old_artifact: Path) -> None:
    detector = load(old_artifact)
    assert detector.artifact.manifest.schema == 3
    golden = read_artifact(old_artifact).golden()
    result = detector.infer(golden.rgb, golden.xyz)
    tolerance = 0.0 if made_here(old_artifact) else ROUNDING
    scale = golden.expected_map.max()
    assert scale > 2 * golden.expected_map.mean() > 0  # an answer that can be wrong
    np.testing.assert_allclose(
        result.anomaly_map, golden.expected_map, rtol=0, atol=tolerance * scale
    )
    assert result.image_score == pytest.approx(golden.expected_score, rel=tolerance, abs=0)


def test_an_artifact_of_schema_4_is_one_that_saw_no_marks(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(tiny_artifact, tmp_path / "old")
    content = json.loads((old / MANIFEST_FILE).read_text())
    del content["missing_values"], content[DIGEST_KEY]
    write_manifest({**content, "schema": 4}, old)
    assert read_artifact(old).manifest.missing_values == MissingRecord().to_dict()
    assert load(old).replay_golden().agrees
    write_manifest({**content, "schema": 5}, old)
    with pytest.raises(ArtifactError, match=r"missing: \['missing_values'\]"):
        load(old)
