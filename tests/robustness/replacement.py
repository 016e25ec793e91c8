"""An artifact that is replaced while it is read: every answer is that of one detector.

Another process writes two artifacts in turn to the same path, as fast as it can. Everything that
reads an artifact is asked in turn meanwhile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from robustness.attack import (
    ANSWER,
    LEFTOVER,
    MIXTURE,
    REFUSAL,
    WRONG_EXCEPTION,
    Outcome,
)
from robustness.replacing import replacements, write_other, writer_arguments
from tiny_artifacts import make_arrays, write_tiny_cfm

import mmad_fast
from mmad_fast import golden_replays
from mmad_fast.artifact import Artifact, read_artifact, write_artifact
from mmad_fast.cli.doctor import _replay_golden
from mmad_fast.detector import Detector, load
from mmad_fast.errors import ArtifactError

REPLACED = "was replaced since it was"
"""What is said where something is read late, of an artifact that is no longer there."""
SCAN = make_arrays(seed=1)
Reader = Callable[[Path], tuple]


def run(count: int, seed: int) -> Iterator[Outcome]:
    """What was read while an artifact was replaced `count` times, half of them as on a file system
    that cannot exchange two folders. When is up to the two processes; the seed changes nothing."""
    with tempfile.TemporaryDirectory(prefix="replacement-") as scratch:
        first = write_tiny_cfm(Path(scratch, "first", "artifact"))
        Path(scratch, "second").mkdir()
        second = write_other(first, Path(scratch, "second"))
        target = Path(scratch, "line", "artifact")
        write_artifact(target, **writer_arguments(first))
        expected = {reader: (reader(first), reader(second)) for reader in READERS}
        for number, options in ((count - count // 2, ()), (count // 2, ("two-steps",))):
            with replacements(first, second, target, number, *options) as writer:
                while writer.poll() is None:
                    for reader in READERS:
                        yield outcome_of(reader, target, expected[reader])
            if writer.returncode != 0:
                raise RuntimeError(f"the writer ended with exit code {writer.returncode}")
        left = sorted(path.name for path in target.parent.iterdir())
        if left != ["artifact"]:
            yield Outcome(LEFTOVER, what=f"{left}")


def outcome_of(reader: Reader, target: Path, expected: tuple[tuple, tuple]) -> Outcome:
    """What came of a reading; the case is the reader and which of the two answers it gave."""
    name = reader.__name__
    try:
        answer = reader(target)
    except ArtifactError as error:
        if reader is replayed and REPLACED in str(error):
            return Outcome(REFUSAL, name)
        return Outcome(WRONG_EXCEPTION, name, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome(WRONG_EXCEPTION, name, f"{type(error).__name__}: {error}")
    if answer not in expected:
        return Outcome(MIXTURE, name, str(answer)[:80])
    return Outcome(ANSWER, f"{name} {expected.index(answer)}")


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


READERS: tuple[Reader, ...] = (
    loaded,
    loaded_unverified,
    inferred_by_path,
    read,
    replayed,
    replayed_on_all_engines,
    diagnosed,
)
