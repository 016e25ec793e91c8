"""An artifact that is replaced while it is read: every answer is that of one detector.

MMAD_FAST_REPLACEMENTS: how often it is replaced by another process; `make fuzz` takes 1,000.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_arrays
from robustness.replacing import replacements, write_other, writer_arguments

import mmad_fast
from mmad_fast import golden_replays
from mmad_fast.artifact import Artifact, read_artifact, write_artifact
from mmad_fast.cli.doctor import _replay_golden
from mmad_fast.detector import Detector, load
from mmad_fast.errors import ArtifactError

NUM_REPLACEMENTS = int(os.environ.get("MMAD_FAST_REPLACEMENTS", "120"))
REPLACED = "was replaced since it was"
"""What is said where something is read late, of an artifact that is no longer there."""
SCAN = make_arrays(seed=1)


@pytest.fixture(scope="module")
def other_artifact(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_other(tiny_artifact, tmp_path_factory.mktemp("other"))


def answer_of(detector: Detector) -> tuple[float | None, float]:
    """What tells the detectors apart: the threshold, of the manifest, and the score."""
    result = detector.infer(*SCAN)
    return result.threshold, result.image_score


def content_of(artifact: Artifact) -> tuple[float, float, bytes]:
    """The same of what is read without a detector."""
    assert artifact.manifest.threshold is not None
    tensors = artifact.tensors()
    return (
        artifact.manifest.threshold.value,
        artifact.golden().expected_score,
        tensors["rgb_to_point.input.weight"].tobytes(),
    )


def loaded(path: Path) -> tuple:
    return answer_of(load(path))


def loaded_unverified(path: Path) -> tuple:
    return answer_of(load(path, verify=False))


def inferred_by_path(path: Path) -> tuple:
    result = mmad_fast.infer(path, *SCAN)
    return result.threshold, result.image_score


def read(path: Path) -> tuple:
    return content_of(read_artifact(path))


def replayed(path: Path) -> tuple:
    """The golden scan is read when the detector is there, by when its artifact may be gone."""
    replay = load(path).replay_golden()
    return replay.expected_score, replay.agrees


def replayed_on_all_engines(path: Path) -> tuple:
    artifact = read_artifact(path)
    replays = list(golden_replays.replay_engines(artifact))
    return tuple((one.engine, one.files.target, one.verdict, one.reason) for one in replays)


def diagnosed(path: Path) -> tuple:
    report = _replay_golden(path, None, "cpu", None, None)
    return report["expected_score"], report["agrees"]


READERS: tuple[Callable[[Path], tuple], ...] = (
    loaded,
    loaded_unverified,
    inferred_by_path,
    read,
    replayed,
    replayed_on_all_engines,
    diagnosed,
)


@pytest.mark.parametrize("options", [(), ("two-steps",)], ids=["exchanged", "two-steps"])
def test_every_answer_is_that_of_one_artifact(
    options: tuple[str, ...],
    tiny_artifact: Path,
    other_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = write_artifact(tmp_path / "line" / "artifact", **writer_arguments(tiny_artifact))
    both = (tiny_artifact, other_artifact)
    expected = {reader: {reader(folder): folder for folder in both} for reader in READERS}
    telling = {reader for reader in READERS if len(expected[reader]) == 2}
    assert telling == set(READERS) - {replayed_on_all_engines}
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    seen: set[Path] = set()
    with replacements(*both, target, NUM_REPLACEMENTS, *options) as writer:
        while writer.poll() is None:
            for reader in READERS:
                try:
                    answer = reader(target)
                except ArtifactError as error:
                    is_late = reader is replayed and REPLACED in str(error)
                    counts["read too late" if is_late else "errors"] += 1
                    wrong += [f"{reader.__name__}: {error}"] * (not is_late)
                    continue
                counts["answers"] += 1
                if answer not in expected[reader]:
                    counts["mixtures"] += 1
                    wrong.append(f"{reader.__name__}: a mixture {str(answer)[:80]}")
                elif reader in telling:
                    seen.add(expected[reader][answer])
    assert writer.returncode == 0
    with capsys.disabled():
        print(f"\n{NUM_REPLACEMENTS} replacements{', '.join(('', *options))}: {dict(counts)}")
    assert wrong == []
    assert counts["answers"] >= len(READERS)
    assert seen == set(both)
    assert [path.name for path in target.parent.iterdir()] == ["artifact"]
