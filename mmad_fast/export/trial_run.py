"""What a new engine does on this machine: the golden scan's answer, and its time in turns with the
other engines of the artifact."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmad_fast.artifact import Artifact
from mmad_fast.detector import GOLDEN_TOLERANCE, Detector, GoldenReplay, open_detector
from mmad_fast.engine_record import EngineKey, EngineRecord, own_precision
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import ENGINE_BY_TARGET, EngineFiles, choose_engine
from mmad_fast.errors import ArtifactError, BackendUnavailableError, MmadFastError
from mmad_fast.measure.timing import time_interleaved
from mmad_fast.processor import cpu_model
from mmad_fast.threads import get_num_threads

TIMING_BUDGET_S = 10.0
MIN_RUNS, MAX_RUNS = 5, 30


def try_engine(artifact: Artifact, files: EngineFiles) -> tuple[dict[str, Any] | None, str | None]:
    """The golden scan's answer by an engine that was just made.

    Args:
        artifact: Where tensors and golden scan are.
        files: The engine's files, wherever they are.

    Returns:
        ({"engine", "map_difference", "score"}, None), or (None, why it could not run here).

    Raises:
        MmadFastError: it runs, and its answer is not that of the detector (fp32), or no number.
        ArtifactError: the engine cannot load the graphs, though they are fp32.
    """
    engine, is_exact = ENGINE_BY_TARGET[files.target], files.precision == "fp32"
    try:
        choice = choose_engine([files], engine=engine, precision=files.precision)
    except BackendUnavailableError as error:
        return None, str(error)
    try:
        detector = open_detector(artifact, choice)
    except ArtifactError as error:
        if is_exact:
            raise
        # ONNX Runtime's CPU provider, for one, has no kernels for some types that a GPU has.
        return None, str(error)
    replay = _replay(detector, files)
    if is_exact and not replay.agrees:
        raise MmadFastError(
            f"the {files.target} fp32 engine differs from the detector on the golden scan: by "
            f"{replay.map_difference:.2e} of the map's maximum, score {replay.score:.6g} where "
            f"{replay.expected_score:.6g} is expected; at most "
            f"{GOLDEN_TOLERANCE + replay.map_step:.2g} and {GOLDEN_TOLERANCE:g} are accepted. "
            "Nothing was written. See whether `mmad-fast doctor ARTIFACT` agrees without this "
            "engine; if it does, this engine's library is at fault: take another version"
        )
    golden = {"engine": engine, "map_difference": replay.map_difference, "score": replay.score}
    return golden, None


def _replay(detector: Detector, files: EngineFiles) -> GoldenReplay:
    try:
        return detector.replay_golden()
    except ArtifactError:
        raise
    except MmadFastError as error:
        raise MmadFastError(
            f"the {files.target} {files.precision} engine fails on the golden scan ({error}); "
            "nothing was written. Choose another precision: bf16 has the range of fp32, fp16 has "
            "not"
        ) from error


def time_engines(
    artifact: Artifact, record: EngineRecord, files: EngineFiles
) -> dict[EngineKey | None, dict[str, Any]]:
    """Per engine its times in milliseconds, of this machine and of one run, called in turns.

    The new engine, the artifact's own graphs (None) and its other engines of the same precision as
    those, which a detector would choose between; those that cannot run here are left out.

    Args:
        artifact: The artifact without the new engine.
        record: The new engine.
        files: Its files.

    Returns:
        Per key {"engine", "machine", "threads", "p50_ms", "graph_ms" (p50 by graph)}.
    """
    own = own_precision(artifact.manifest.parameters)
    candidates: dict[EngineKey | None, EngineFiles] = {None: artifact.engine_files()[0]}
    for other in artifact.manifest.engines:
        if other.precision == own and other.key != record.key:
            candidates[other.key] = artifact.files_of(other)
    candidates[record.key] = files
    opened = {key: graphs for key, one in candidates.items() if (graphs := _open(one))}
    latencies = _time_in_turns(list(opened.values()))
    facts = {"machine": cpu_model(), "threads": get_num_threads()}
    return {
        key: {
            "engine": ENGINE_BY_TARGET[candidates[key].target],
            **facts,
            "p50_ms": round(sum(graph_ms.values()), 4),
            "graph_ms": {name: round(ms, 4) for name, ms in graph_ms.items()},
        }
        for key, graph_ms in zip(opened, latencies, strict=True)
    }


def _open(files: EngineFiles) -> dict[str, Engine] | None:
    """The graphs by name, opened; None where no engine can run them here."""
    if files.target not in ENGINE_BY_TARGET:  # of a newer version
        return None
    try:
        engine = ENGINE_BY_TARGET[files.target]
        choice = choose_engine([files], engine=engine, precision=files.precision)
        return {name: choice.open(name) for name in choice.files}
    except (BackendUnavailableError, ArtifactError):
        return None


def _time_in_turns(engines: Sequence[Mapping[str, Engine]]) -> list[dict[str, float]]:
    """Per engine the median milliseconds of each of its graphs."""
    rng = np.random.default_rng(0)
    calls = {}
    for index, graphs in enumerate(engines):
        for name, graph in graphs.items():
            inputs = {
                key: rng.standard_normal(shape, np.float32)
                for key, shape in graph.input_shapes.items()
            }
            calls[f"{index} {name}"] = lambda graph=graph, inputs=inputs: graph.run(inputs)
    start = time.perf_counter()
    for call in calls.values():  # warms up
        call()
    round_s = max(time.perf_counter() - start, 1e-6)
    runs = min(MAX_RUNS, max(MIN_RUNS, math.ceil(TIMING_BUDGET_S / round_s)))
    latencies = time_interleaved(calls, num_runs=dict.fromkeys(calls, runs))
    return [
        {name: statistics.median(latencies[f"{index} {name}"]) for name in graphs}
        for index, graphs in enumerate(engines)
    ]
