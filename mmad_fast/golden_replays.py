"""The golden scan's answer by every engine of an artifact, beside the expected one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmad_fast.artifact import Artifact
from mmad_fast.detector import GOLDEN_TOLERANCE, GoldenReplay, open_detector
from mmad_fast.engine_record import EngineRecord, own_precision
from mmad_fast.engines import ENGINES
from mmad_fast.engines.selection import EngineFiles, choose_engine
from mmad_fast.errors import ArtifactError, BackendUnavailableError, MmadFastError

AGREES, APPROXIMATE, DIFFERS, FAILS = "agrees", "approximate", "differs", "fails"
APPROXIMATION_FACTOR = 2.0
"""An approximation may be this many times further from the fitted detector than when it was
exported: other processors round at other places, and an engine that broke is off by far more."""


@dataclass(frozen=True)
class EngineReplay:
    """One engine with one set of files.

    Attributes:
        engine: A name in ENGINES; None where this version has none for the files.
        files: What it opens.
        verdict: "agrees" with the fitted detector or, an approximation, with its own answer at
            export; "approximate": nothing to compare it with; "differs"; "fails": raises an error
            though it ran when it was exported. None where it cannot run here.
        replay: Its answer; None where it has none.
        reason: Why it has none.
    """

    engine: str | None
    files: EngineFiles
    verdict: str | None
    replay: GoldenReplay | None
    reason: str | None


def replay_engines(
    artifact: Artifact,
    *,
    engine: str | None = None,
    device: str = "cpu",
    precision: str | None = None,
) -> Iterator[EngineReplay]:
    """Every engine with every file of the artifact that it reads; the artifact's own graphs first.

    Args:
        artifact: A verified artifact.
        engine: Only this one.
        device: Device of the detector.
        precision: Only files of this precision.
    """
    for files, record in zip(
        artifact.engine_files(), (None, *artifact.manifest.engines), strict=True
    ):
        if precision not in (None, files.precision):
            continue
        readers = [
            name
            for name, entry in ENGINES.items()
            if engine in (None, name) and files.target in entry.reads and device in entry.devices
        ]
        for name in readers:
            yield _replay(artifact, files, record, name, device)
        if not readers and engine is None:
            reason = (
                f"no engine of this version reads {files.target!r} on device {device!r}; if a "
                "newer version exported it: pip install --upgrade mmad-fast"
            )
            yield EngineReplay(None, files, None, None, reason)


def _replay(
    artifact: Artifact, files: EngineFiles, record: EngineRecord | None, engine: str, device: str
) -> EngineReplay:
    golden = None if record is None else record.golden
    recorded = golden if golden is not None and golden["engine"] == engine else None
    try:
        choice = choose_engine([files], engine=engine, device=device, precision=files.precision)
    except BackendUnavailableError as error:
        return EngineReplay(engine, files, None, None, str(error))
    must_run = record is None or recorded is not None
    try:
        replay = open_detector(artifact, choice).replay_golden()
    except (BackendUnavailableError, ArtifactError) as error:
        return EngineReplay(engine, files, FAILS if must_run else None, None, str(error))
    except MmadFastError as error:  # its answer is no number
        return EngineReplay(engine, files, FAILS, None, str(error))
    if files.precision in (own_precision(artifact.manifest.parameters), "fp32"):
        verdict = AGREES if replay.agrees else DIFFERS
    elif recorded is None:
        verdict = APPROXIMATE
    else:
        verdict = AGREES if _is_as_recorded(replay, recorded) else DIFFERS
    return EngineReplay(engine, files, verdict, replay, None)


def _is_as_recorded(replay: GoldenReplay, recorded: dict[str, Any]) -> bool:
    """Map and score are not much further from the fitted detector's than at export."""
    recorded_score = abs(recorded["score"] - replay.expected_score)
    score = abs(replay.score - replay.expected_score)
    slack = GOLDEN_TOLERANCE * replay.score_scale
    return (
        replay.map_difference
        <= APPROXIMATION_FACTOR * recorded["map_difference"] + GOLDEN_TOLERANCE + replay.map_step
        and score <= APPROXIMATION_FACTOR * recorded_score + slack
    )
