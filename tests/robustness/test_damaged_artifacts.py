"""Whatever is done to an artifact, loading and running it ends in ArtifactError or in an answer.

MMAD_FAST_DAMAGED_ARTIFACTS: how many damages, 150 unless it is set; `make fuzz` takes more.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import onnx
import pytest
from robustness.damaged_artifacts import HOSTILE_GRAPHS, reseal, run_guarded

from mmad_fast import load
from mmad_fast.errors import ArtifactError

COUNT = int(os.environ.get("MMAD_FAST_DAMAGED_ARTIFACTS", "150"))
SEED = int(os.environ.get("MMAD_FAST_DAMAGED_ARTIFACTS_SEED", "0"))
MAX_SECONDS = 2.0
MAX_MIB = 1536
ALLOWED = {"same", "different", "refused", "undecided"}


def test_a_damaged_artifact_is_refused_or_answers(tiny_artifact: Path) -> None:
    rows = list(run_guarded(tiny_artifact, seed=SEED, count=COUNT))
    assert [row["number"] for row in rows] == list(range(COUNT))
    counts = Counter(row["outcome"] for row in rows)
    wrong = [row for row in rows if row["outcome"] not in ALLOWED]
    assert not wrong, wrong[:5]
    assert counts["refused"] > COUNT / 2  # the damages are seen at all
    slow = [row for row in rows if row["seconds"] > MAX_SECONDS or row["peak_mib"] > MAX_MIB]
    assert not slow, slow[:5]
    assert all(row["error"] for row in rows if row["outcome"] == "refused")


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
