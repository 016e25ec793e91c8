"""A set of engines: backbones cut after a block, built without a detector.

    manifest.json                                  a record per engine, the sha256 of every file
    dino-vitb8-l4.fp16.sm89.tensorrt-rtx.engine
    point-mae-b1-2-3.fp16.sm89.tensorrt-rtx.engine
    point-mae.embedder.safetensors                 of the op point_embedding, which runs first

The scripts in export/ build such folders. The graphs of a fitted detector are exported by
`export_detector`: its mapping networks go with its own backbones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.numpy

from mmad_fast import __version__
from mmad_fast.backbones import WeightsSource, resolve_weights
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.errors import (
    ArtifactError,
    BackendUnavailableError,
    InvalidInputError,
    MissingDependencyError,
)
from mmad_fast.export.backbone_cut import POINT_MAE, BackboneCut, export_cut
from mmad_fast.export.cut_engines import (
    EngineRecord,
    EngineRequest,
    build_engines,
    calibration_inputs,
)
from mmad_fast.scan import Scan, Unit
from mmad_fast.whole_folder import (
    MANIFEST_FILE,
    FolderKind,
    as_path,
    fingerprint,
    make_readable,
    move_into_place,
    new_folder_beside,
    read_manifest,
    verify_file,
    write_manifest,
)

SCHEMA_VERSION = 1
KIND = FolderKind(
    name="engine set",
    contents="an engine set",
    schema=SCHEMA_VERSION,
    mark="engines",
    command="python export/engine_set.py",
    again="copy the engine set again, or build it again",
    renew="build the engine set again",
)
EMBEDDER_FILE = "point-mae.embedder.safetensors"
_PACKAGES = ("torch", "onnx", "onnxscript")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


@dataclass(frozen=True)
class EngineSet:
    """An engine set whose manifest has been read.

    Attributes:
        path: The folder.
        weights: Where each backbone's weights came from, by backbone.
        engines: The records.
        embedder: The file with the weights of Point-MAE's group embedder; None without Point-MAE.
    """

    path: Path
    weights: Mapping[str, Mapping[str, Any]]
    engines: tuple[EngineRecord, ...]
    embedder: Path | None


def build_engine_set(
    output: str | Path,
    cuts: Sequence[BackboneCut],
    request: EngineRequest,
    *,
    rgb_weights: str | Path = "auto",
    point_weights: str | Path = "auto",
    calibration: Sequence[ScanFile | Scan] = (),
    unit: Unit = "m",
    seed: int = 0,
    progress: Progress | None = None,
) -> EngineSet:
    """The engine set of these cuts, complete on disk; one that stands at `output` is replaced.

    Written whole or not at all: everything that can be refused is checked before the first graph,
    and what is built lies in a folder beside until all of it is there.

    Args:
        output: The folder.
        cuts: Which backbones, cut after which block.
        request: Targets, precisions, compute capabilities, batch.
        rgb_weights: Of all RGB cuts: checkpoint path, "auto" (download) or "random" (seeded).
        point_weights: Likewise for Point-MAE.
        calibration: Nominal scans for int8 and fp8; those without foreground are left out.
        unit: Unit of their XYZ files.
        seed: Of random weights.
        progress: Called with (what, done, total).

    Raises:
        InvalidInputError: no cut, the same one twice, or a precision without calibration scans.
        EmptyScanError: no calibration scan has enough foreground.
        WeightsError: the weights cannot be had or do not fit.
        MissingDependencyError: torch, onnx or onnxscript is not installed.
        BackendUnavailableError: a target's library is not installed, or it needs a GPU.
        ArtifactError: `output` holds something else, or cannot be written.
    """
    weights = {POINT_MAE: point_weights}
    weights.update({cut.backbone: rgb_weights for cut in cuts if cut.backbone != POINT_MAE})
    _check(cuts, request, calibration)
    tell = progress or (lambda what, done, total: None)
    total = len(cuts) * len(request.precisions) * len(request.targets)
    with new_folder_beside(output, KIND) as (scratch, target), TemporaryDirectory() as graphs:
        sources = {
            backbone: resolve_weights(backbone, weights[backbone], seed=seed)
            for backbone in dict.fromkeys(cut.backbone for cut in cuts)
        }
        records: list[EngineRecord] = []
        embedder = None
        for cut in cuts:
            tell(f"{cut.name} from torch", len(records), total)
            graph = export_cut(cut, Path(graphs), weights=weights[cut.backbone], seed=seed)
            embedder = graph.embedder or embedder
            inputs = calibration_inputs(graph, calibration, unit) if calibration else ()
            for record in build_engines(graph, scratch, request, calibration=inputs):
                records.append(record)
                tell(f"{cut.name} {record.precision} {record.target}", len(records), total)
            graph.path.unlink()
        if embedder is not None:
            safetensors.numpy.save_file(embedder.to_tensors(""), scratch / EMBEDDER_FILE)
        _write(scratch, records, sources)
        make_readable(scratch)
        move_into_place(scratch, target, KIND)
    return read_engine_set(target)


def _check(cuts: Sequence[BackboneCut], request: EngineRequest, calibration: Sequence[Any]) -> None:
    names = [cut.name for cut in cuts]
    if not names or len(set(names)) < len(names):
        raise InvalidInputError(
            f"the cuts to build are {', '.join(names) or 'none'}; at least one is needed, and none "
            "twice"
        )
    if request.needs_calibration and not len(calibration):
        raise InvalidInputError(
            "int8 and fp8 need nominal scans that give the ranges of the activations; name a data "
            "set with --calibration"
        )
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"building engines from weights needs {', '.join(missing)}, not installed here; run "
            "pip install 'mmad-fast[fit,export]'"
        )
    if (reason := request.refusal()) is not None:
        raise BackendUnavailableError(reason)


def _write(
    scratch: Path, records: Sequence[EngineRecord], sources: Mapping[str, WeightsSource]
) -> None:
    """Writes the manifest; no path in it, since it names a machine."""
    files = {file.name: fingerprint(file) for file in sorted(scratch.iterdir())}
    content = {
        "schema": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "mmad_fast": __version__,
        "weights": {
            name: {"kind": source.kind, "detail": source.detail, "sha256": source.sha256}
            for name, source in sources.items()
        },
        "embedder": EMBEDDER_FILE if EMBEDDER_FILE in files else None,
        "engines": [asdict(record) for record in records],
        "files": files,
    }
    write_manifest(content, scratch)


def read_engine_set(path: str | Path, *, verify: bool = True) -> EngineSet:
    """The engine set in a folder, verified.

    Args:
        path: The folder.
        verify: Check the sha256 of every file (about 1 GB/s); sizes are checked always.

    Raises:
        InvalidInputError: `path` is no path.
        ArtifactError: it is missing, damaged, or of another schema.
    """
    folder = as_path(path, KIND)
    try:
        content = read_manifest(folder, KIND)
        files = content["files"]
        for name, wanted in files.items():
            if Path(name).name != name:
                raise ArtifactError(
                    f"{folder / MANIFEST_FILE}: names a file outside the engine set: {name!r}"
                )
            verify_file(folder, name, wanted, KIND, hashed=verify)
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or folder}: cannot be read ({error.strerror or error}); check that "
            "you may read the engine set's files"
        ) from error
    wanted_fields = {field.name for field in fields(EngineRecord)}
    for record in content["engines"]:
        if set(record) != wanted_fields or not set(record["files"]) <= set(files):
            raise ArtifactError(
                f"{folder / MANIFEST_FILE}: a record has the wrong fields or files "
                f"({', '.join(sorted(set(record) ^ wanted_fields)) or record['files']}); "
                f"{KIND.again}"
            )
    engines = tuple(EngineRecord(**record) for record in content["engines"])
    embedder = None if content["embedder"] is None else folder / content["embedder"]
    return EngineSet(folder, content["weights"], engines, embedder)
