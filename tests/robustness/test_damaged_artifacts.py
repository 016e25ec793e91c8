"""Whatever is done to an artifact, loading and running it ends in ArtifactError or in an answer."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import onnx
import pytest
from robustness import damaged_artifacts
from robustness.attack import REFUSAL, faults
from robustness.damaged_artifacts import HOSTILE_GRAPHS, reseal

from mmad_fast import load
from mmad_fast.errors import ArtifactError

COUNT = 100
MAX_SECONDS = 2.0


@pytest.mark.own_process
def test_a_damaged_artifact_is_refused_or_answers() -> None:
    outcomes = list(damaged_artifacts.run(COUNT, seed=0))
    assert faults(outcomes) == []
    kinds = Counter(one.kind for one in outcomes)
    assert kinds[REFUSAL] > COUNT / 2  # the damages are seen at all
    assert max(one.seconds for one in outcomes) < MAX_SECONDS


MAY_PASS = {
    "another attribute",
    "another constant of a shape",
    "another input",
    "another operator",
    "another shape claimed",
}
"""Which of these change an answer and no more depends on what is drawn."""


@pytest.mark.parametrize("kind", sorted(HOSTILE_GRAPHS.keys() - MAY_PASS))
def test_what_a_graph_must_not_have_is_refused(
    kind: str, tiny_artifact: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    model = onnx.load_model(folder / "rgb.onnx")
    HOSTILE_GRAPHS[kind](model, random.Random(0))
    (folder / "rgb.onnx").write_bytes(model.SerializeToString())
    reseal(folder)
    with pytest.raises(ArtifactError, match=r"rgb\.onnx: cannot be loaded as a detector's graph"):
        load(folder)
