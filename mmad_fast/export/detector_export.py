"""Artifact -> the same artifact with one more engine. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmad_fast.artifact import KIND, Artifact, check_target, read_artifact
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.engine_record import EngineKey, EngineRecord, own_precision
from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.export.artifact_update import add_engine, fitted_files
from mmad_fast.export.batch import SINGLE, Batch
from mmad_fast.export.calibration_scans import EMPTY_CALIBRATION, calibrate
from mmad_fast.export.deployment_graph import check_source, deployment_graph
from mmad_fast.export.export_request import ExportRequest
from mmad_fast.export.graph_writer import WrittenGraph, write_graph
from mmad_fast.export.trial_run import time_engines, try_engine
from mmad_fast.methods.fit_request import Progress, silent
from mmad_fast.scan import Scan, Unit
from mmad_fast.whole_folder import MANIFEST_FILE, as_path, new_folder_beside


@dataclass(frozen=True)
class ExportReport:
    """What an export made, and what it does on this machine.

    Attributes:
        artifact: The artifact that holds the engine.
        record: What its manifest says of the engine.
        graphs: Per graph its files, build time and layers.
        not_run: Why the engine could not be tried on this machine; None where it was.
        own_p50_ms: Time of the artifact's own graphs, in turns with the engine; None where not
            measured.
        notices: What the user should know.
    """

    artifact: Path
    record: EngineRecord
    graphs: Mapping[str, WrittenGraph]
    not_run: str | None
    own_p50_ms: float | None
    notices: tuple[str, ...]

    @property
    def target(self) -> str:
        """What it was exported for."""
        return self.record.target

    @property
    def precision(self) -> str:
        """Precision of its graphs."""
        return self.record.precision

    @property
    def sms(self) -> tuple[int, ...]:
        """Compute capabilities that it was built for."""
        return tuple(self.record.sms)

    @property
    def library(self) -> str:
        """What built it, with its version."""
        return self.record.library

    @property
    def files(self) -> dict[str, int]:
        """Size in bytes of each file."""
        return {name: (self.artifact / name).stat().st_size for name in self.record.files}

    @property
    def build_s(self) -> float:
        """Seconds of building; of a cached one, when it was built."""
        return self.record.build_s

    @property
    def from_cache(self) -> bool:
        """All graphs were built before."""
        return all(graph.from_cache for graph in self.graphs.values())

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """Summary of the layers per graph, where the target has them (TensorRT)."""
        return {name: graph.layers for name, graph in self.graphs.items() if graph.layers}

    @property
    def golden_difference(self) -> float | None:
        """Largest difference of the golden scan's map, relative to its maximum; None where it
        could not run here."""
        golden = self.record.golden
        return None if golden is None else float(golden["map_difference"])

    @property
    def measured(self) -> dict[str, Any] | None:
        """Its time on this machine."""
        return self.record.measured

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "artifact": str(self.artifact),
            **asdict(self.record),
            "files": self.files,
            "from_cache": self.from_cache,
            "layers": self.layers,
            "not_run": self.not_run,
            "own_p50_ms": self.own_p50_ms,
            "notices": list(self.notices),
        }


def export_detector(
    artifact: str | Path,
    *,
    to: str,
    precision: str = "fp32",
    sms: Sequence[int] = (),
    batch: Batch | int = SINGLE,
    calibration: str | Path | Sequence[Scan | ScanFile] | None = None,
    category: str | None = None,
    unit: Unit = "m",
    output: str | Path | None = None,
    cache: bool = True,
    measure: bool = True,
    progress: Progress | None = None,
) -> ExportReport:
    """What was made: an engine of the artifact's graphs, which the artifact holds from now on.

    The folder is replaced whole or not at all, also where the export is interrupted. Detectors
    that other processes have loaded from it go on. An engine of the same target, precision, batch
    and compute capabilities is replaced.

    Where the engine can run here it answers the golden scan first, and is timed in turns with the
    artifact's own graphs; `load` picks by these times.

    Args:
        artifact: An artifact's folder.
        to: "onnx", "openvino", "tensorrt-rtx" or "tensorrt".
        precision: "fp32", "fp16", "bf16", "int8" or "fp8".
        sms: Compute capabilities of the GPUs, e.g. [86, 89]; needed for "tensorrt-rtx".
        batch: Scans per run, or a dynamic batch; a detector runs one scan at a time.
        calibration: Nominal scans of the same part, from which int8 and fp8 take their ranges: a
            data set, or scans. None: the golden scan alone.
        category: Which category of the data set.
        unit: Unit of the data set's XYZ files.
        output: Where to write the artifact with the engine; None: the artifact itself. A copy of
            this detector that stands there gets the engine too.
        cache: Take TensorRT engines that were built before from the user's cache, and keep new
            ones there.
        measure: Time the engine.
        progress: Called with (what, done, total).

    Raises:
        InvalidInputError: an argument there is not, or that does not go with the others; the
            detector has no networks, or was fitted with precision="int8"; the calibration scans
            are unusable.
        DataError: the calibration data set is missing or unreadable.
        ArtifactError: the artifact is missing or damaged, or cannot be written.
        MissingDependencyError: onnx is not installed.
        BackendUnavailableError: the target's library is not installed, or needs a GPU.
        MmadFastError: the engine's answer to the golden scan is not that of the detector (fp32).
    """
    request = ExportRequest.of(to=to, precision=precision, sms=sms, batch=batch)
    _check_calibration(request, calibration, category)
    base, target = _base_and_target(artifact, output, request.key)
    tell = progress or silent
    calibrated = EMPTY_CALIBRATION
    if request.needs_calibration:
        for name in base.manifest.graphs:
            with base.opened_graph(name) as graph_file:
                check_source(graph_file, precision, named=base.graph_path(name))
        calibrated = calibrate(base, calibration, category=category, unit=unit, progress=tell)
    with new_folder_beside(target, KIND) as (scratch, target):
        graphs: dict[str, WrittenGraph] = {}
        for name in base.manifest.graphs:
            tell(f"build {name}", len(graphs), len(base.manifest.graphs))
            with base.opened_graph(name) as graph_file:
                model = deployment_graph(
                    graph_file,
                    target=to,
                    precision=precision,
                    batch=request.batch,
                    calibration=calibrated.inputs.get(name, ()),
                    named=base.graph_path(name),
                )
            graphs[name] = write_graph(model, name, request.key, scratch, cache=cache)
        record = _record(request, graphs, calibrated.num_scans)
        files = replace(replace(base, path=scratch).files_of(record), folder=None)
        tell("golden scan", 0, 1)
        golden, not_run = try_engine(base, files)
        if not_run is not None:  # a file is named by the place where it will be
            not_run = not_run.replace(str(scratch), str(target))
        record = replace(record, golden=golden)
        times: dict[EngineKey | None, dict[str, Any]] = {}
        if measure and not_run is None:
            tell("time", 0, 1)
            times = time_engines(base, record, files)
            record = replace(record, measured=times.get(record.key))
        add_engine(base, record, scratch, target, measured=times)
    in_place = {
        name: replace(graph, paths=tuple(target / path.name for path in graph.paths))
        for name, graph in graphs.items()
    }
    return ExportReport(
        target,
        record,
        in_place,
        not_run,
        own_p50_ms=times[None]["p50_ms"] if None in times else None,
        notices=(*calibrated.notices, *_batch_notices(request.batch)),
    )


def _batch_notices(batch: Batch) -> tuple[str, ...]:
    if batch.min == 1:
        return ()
    return (
        f"a detector runs one scan at a time and does not use batches of {batch.min} and more: the "
        "files are for programs of your own; a detector takes batch 1 (--batch 1), or a profile "
        "that begins with 1 (--batch 1,4,8)",
    )


def _check_calibration(request: ExportRequest, calibration: object, category: str | None) -> None:
    if not request.needs_calibration and calibration is not None:
        raise InvalidInputError(
            f"calibration scans are given, and precision {request.precision!r} has no ranges to "
            "take from scans; leave them out, or choose precision 'int8' or 'fp8'"
        )
    if category is not None and not isinstance(calibration, (str, os.PathLike)):
        raise InvalidInputError(
            f"category is {category!r}, and no calibration data set is given; name it with "
            "calibration (--calibration)"
        )
    if calibration is not None and not isinstance(calibration, (str, os.PathLike, Sequence)):
        raise InvalidInputError(
            f"calibration is {calibration!r}; it must be a data set's folder or a list of scans"
        )


def _base_and_target(
    artifact: str | Path, output: str | Path | None, key: EngineKey
) -> tuple[Artifact, Path]:
    """(the artifact that gets the engine, where it will be), both checked before hours of work.

    Raises:
        InvalidInputError: no path, or a detector without graphs, or whose graphs are int8 already.
        ArtifactError: see export_detector.
    """
    source = read_artifact(artifact, renewed=key)
    if own_precision(source.manifest.parameters) != "fp32":
        raise InvalidInputError(
            f"{source.path}: the detector was fitted with precision='int8', so its graphs are "
            "rounded already; fit it again without --precision int8 (and without --speed fast), "
            "then export that one in the precision you need"
        )
    if not source.manifest.graphs:
        raise InvalidInputError(
            f"{source.path}: a {source.manifest.method} detector has no networks, so there is "
            "nothing to export: it runs as it is, on the CPU with NumPy and the compiled kernels"
        )
    target = source.path if output is None else as_path(output, KIND)
    if (target / MANIFEST_FILE).is_file() and not target.samefile(source.path):
        check_target(target)
        existing = read_artifact(target, renewed=key)
        if fitted_files(existing) != fitted_files(source):
            raise ArtifactError(
                f"{target}: holds another detector than {source.path}; name a new folder"
            )
        source = existing
    _check_writable(target, is_new=output is not None)
    return source, target.resolve()


def _check_writable(target: Path, *, is_new: bool) -> None:
    """Raises ArtifactError if the artifact cannot be replaced or written there."""
    if target.is_dir() and not os.access(target, os.W_OK):
        problem = f"{target}: the artifact's folder may not be written"
    elif os.path.ismount(target):
        problem = f"{target}: is a mount point, which cannot be replaced as a whole; mount the "
        problem += "folder that holds it"
    else:
        try:
            check_target(target)
            return
        except ArtifactError as error:
            if is_new:
                raise
            problem = str(error)
    raise ArtifactError(f"{problem}; or write a new artifact elsewhere with output (--output)")


def _record(
    request: ExportRequest, graphs: Mapping[str, WrittenGraph], calibration_scans: int
) -> EngineRecord:
    """What the manifest will say of the engine, before it has run."""
    first = next(iter(graphs.values()))
    return EngineRecord(
        target=request.target,
        precision=request.precision,
        batch=asdict(request.batch),
        sms=sorted(first.sms),
        library=first.library,
        graphs={name: [path.name for path in graph.paths] for name, graph in graphs.items()},
        build_s=round(sum(graph.build_s for graph in graphs.values()), 3),
        calibration_scans=calibration_scans,
    )
