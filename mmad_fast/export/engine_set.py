"""A set of engines: backbones cut after a block, built without a detector.

    manifest.json                                  a record per engine, the sha256 of every file
    dino-vitb8-l4.fp16.sm89.tensorrt-rtx.engine
    point-mae-b1-2-3.fp16.sm89.tensorrt-rtx.engine
    point-mae.embedder.safetensors                 of the op point_embedding, which runs first

The scripts in export/ build such folders. The graphs of a fitted detector are exported by
`export_detector`: its mapping networks go with its own backbones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from mmad_fast import __version__
from mmad_fast.artifact import save_safetensors
from mmad_fast.backbones import WeightsSource, resolve_weights
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.engines.tensorrt_library import LIBRARIES
from mmad_fast.errors import (
    ArtifactError,
    EmptyScanError,
    InvalidInputError,
    MissingDependencyError,
)
from mmad_fast.export.backbone_cut import POINT_MAE, BackboneCut, CutGraph, export_cut
from mmad_fast.export.deployment_graph import deployment_graph
from mmad_fast.export.export_request import ExportRequest
from mmad_fast.export.graph_cost import graph_cost
from mmad_fast.export.graph_writer import write_graph
from mmad_fast.folder_files import FolderFiles, read_whole
from mmad_fast.manifest import (
    BATCH,
    BOOLEAN,
    DURATION,
    FILE_NAME,
    FINGERPRINT,
    MAX_INTEGER,
    NAME,
    OBJECT,
    TEXT,
    ByName,
    Fields,
    Many,
    Maybe,
    integers,
)
from mmad_fast.methods.family import default_method, get_method
from mmad_fast.methods.fit_request import Progress, silent
from mmad_fast.preprocess.recipes import Recipe
from mmad_fast.scan import Scan, Unit
from mmad_fast.scratch_folder import replace_folder, temporary_folder
from mmad_fast.whole_folder import (
    MANIFEST_FILE,
    FolderKind,
    as_path,
    fingerprint,
    make_readable,
    new_folder_beside,
    write_manifest,
)

if TYPE_CHECKING:
    import onnx

SCHEMA_VERSION = 1
_COUNT = integers(0, MAX_INTEGER)
_CUT = Fields(
    {
        "graph": NAME,
        "backbone": NAME,
        "num_blocks": _COUNT,
        "fetched": Many(_COUNT),
        "target": NAME,
        "precision": NAME,
        "batch": BATCH,
        "sms": Many(integers(1, 9999)),
        "library": TEXT,
        "files": Many(FILE_NAME, minimum=1),
        "size_bytes": _COUNT,
        "build_s": DURATION,
        "from_cache": BOOLEAN,
        "multiply_adds": _COUNT,
        "parameters": _COUNT,
        "calibration_scans": _COUNT,
        "layers": Maybe(OBJECT),
    }
)
_MANIFEST = Fields(
    {
        "schema": integers(SCHEMA_VERSION, SCHEMA_VERSION),
        "created": TEXT,
        "mmad_fast": TEXT,
        "weights": ByName(OBJECT, NAME),
        "embedder": Maybe(FILE_NAME),
        "engines": Many(_CUT),
        "files": ByName(FINGERPRINT, FILE_NAME),
    }
)
KIND = FolderKind(
    name="engine set",
    contents="an engine set",
    schema=SCHEMA_VERSION,
    mark="embedder",
    command="python export/engine_set.py",
    again="copy the engine set again, or build it again",
    renew="build the engine set again",
    rule=lambda schema: _MANIFEST,
)
EMBEDDER_FILE = "point-mae.embedder.safetensors"
_PACKAGES = ("torch", "onnx", "onnxscript")


@dataclass(frozen=True)
class CutEngine:
    """What is known of one engine of a set.

    Attributes:
        graph: Which graph of a detector it would be: "rgb" or "points".
        backbone: A name in RGB_BACKBONES, or "point-mae".
        num_blocks: Blocks that are in it.
        fetched: Of Point-MAE the 0-based blocks whose outputs are concatenated.
        target: What opens it.
        precision: A name in PRECISIONS.
        batch: {"min", "opt", "max"}.
        sms: Compute capabilities that it serves; empty where it is bound to none.
        library: What built it, with its version.
        files: The first is the one that is opened.
        size_bytes: Of the files together.
        build_s: From the deployment graph to the files; of a cached engine, when it was built.
        from_cache: It was built before.
        multiply_adds: Of one input.
        parameters: Numbers in the weights.
        calibration_scans: How many gave the ranges of int8 or fp8.
        layers: Of a TensorRT engine: what its layers are, see engine_layers.LayerSummary.
    """

    graph: str
    backbone: str
    num_blocks: int
    fetched: Sequence[int]
    target: str
    precision: str
    batch: Mapping[str, int]
    sms: Sequence[int]
    library: str
    files: Sequence[str]
    size_bytes: int
    build_s: float
    from_cache: bool
    multiply_adds: int
    parameters: int
    calibration_scans: int
    layers: Mapping[str, Any] | None


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
    engines: tuple[CutEngine, ...]
    embedder: Path | None


def build_engine_set(
    output: str | Path,
    cuts: Sequence[BackboneCut],
    requests: Sequence[ExportRequest],
    *,
    rgb_weights: str | Path = "auto",
    point_weights: str | Path = "auto",
    calibration: Sequence[ScanFile | Scan] = (),
    recipe: Recipe | None = None,
    unit: Unit = "m",
    seed: int = 0,
    cache: bool = True,
    progress: Progress | None = None,
) -> EngineSet:
    """The engine set of these cuts, complete on disk; one that stands at `output` is replaced.

    Written whole or not at all: what is built lies in a folder beside until all of it is there.

    Args:
        output: The folder.
        cuts: Which backbones, cut after which block.
        requests: What to make of each cut.
        rgb_weights: Of all RGB cuts: checkpoint path, "auto" (download) or "random" (seeded).
        point_weights: Likewise for Point-MAE.
        calibration: Nominal scans for int8 and fp8; those without foreground are left out.
        recipe: How the detectors that the engines are for prepare these scans; None: as the default
            method does.
        unit: Unit of their XYZ files.
        seed: Of random weights.
        cache: Take TensorRT engines that were built before, and keep new ones.
        progress: Called with (what, done, total).

    Raises:
        InvalidInputError: no cut or request, one of them twice, or a precision without calibration
            scans.
        EmptyScanError: no calibration scan has enough foreground.
        WeightsError: the weights cannot be had or do not fit.
        MissingDependencyError: torch, onnx or onnxscript is not installed.
        BackendUnavailableError: a target's library is not installed, or it needs a GPU.
        ArtifactError: `output` holds something else, or cannot be written.
    """
    _check(cuts, requests, calibration)
    weights = {
        cut.backbone: point_weights if cut.backbone == POINT_MAE else rgb_weights for cut in cuts
    }
    tell, total = progress or silent, len(cuts) * len(requests)
    with new_folder_beside(output, KIND) as (scratch, target), temporary_folder("graphs") as graphs:
        # Before hours of work: whether all weights can be had.
        sources = {name: resolve_weights(name, spec, seed=seed) for name, spec in weights.items()}
        engines: list[CutEngine] = []
        embedder = None
        for cut in cuts:
            tell(f"{cut.name} from torch", len(engines), total)
            graph = export_cut(cut, graphs, weights=weights[cut.backbone], seed=seed)
            embedder = graph.embedder or embedder
            inputs: Sequence[Mapping[str, NDArray]] = ()
            if calibration:
                inputs = calibration_inputs(graph, calibration, unit, recipe=recipe)
            deployment = DeploymentGraphs(graph, inputs)
            for request in requests:
                tell(f"{cut.name} {request.precision} {request.target}", len(engines), total)
                engines.append(write_engine(deployment, request, scratch, cache=cache))
            graph.path.unlink()
        if embedder is not None:
            save_safetensors(embedder.to_tensors(""), scratch / EMBEDDER_FILE)
        _write(scratch, engines, sources)
        make_readable(scratch)
        replace_folder(scratch, target)
    return read_engine_set(target)


def _check(
    cuts: Sequence[BackboneCut], requests: Sequence[ExportRequest], calibration: Sequence[Any]
) -> None:
    for what, names in (
        ("cuts", [cut.name for cut in cuts]),
        ("exports", [" ".join(map(str, request.key)) for request in requests]),
    ):
        if not names or len(set(names)) < len(names):
            raise InvalidInputError(
                f"the {what} to build are {', '.join(names) or 'none'}; at least one is needed, "
                "and none twice"
            )
    if not len(calibration) and any(request.needs_calibration for request in requests):
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


def calibration_inputs(
    graph: CutGraph,
    scans: Sequence[ScanFile | Scan],
    unit: Unit = "m",
    *,
    recipe: Recipe | None = None,
) -> list[dict[str, NDArray]]:
    """What the graph gets from each scan; those without foreground are left out.

    Raises:
        EmptyScanError: none is left.
    """
    inputs = []
    recipe = recipe or get_method(default_method())[0].recipe
    for scan in scans:
        try:
            inputs.append(graph.inputs_of(scan, recipe=recipe, unit=unit))
        except EmptyScanError:
            continue
    if not inputs:
        raise EmptyScanError(
            f"none of the {len(scans)} calibration scans has enough foreground; check the unit of "
            "the files"
        )
    return inputs


class DeploymentGraphs:
    """The deployment graphs of one cut, each made once.

    There is one for ONNX Runtime and OpenVINO and one for both TensorRT libraries, see
    `deployment_graph`; calibrating them takes much longer than all else.
    """

    def __init__(self, graph: CutGraph, calibration: Sequence[Mapping[str, NDArray]] = ()) -> None:
        """Takes the exported cut, and inputs of the graph for int8 and fp8."""
        self.graph = graph
        self.calibration = calibration
        self._models: dict[Any, onnx.ModelProto] = {}

    def of(self, request: ExportRequest) -> onnx.ModelProto:
        """The graph for a request; not to be changed.

        Raises:
            InvalidInputError: what deployment_graph refuses.
        """
        key = (request.precision, request.batch, request.target in LIBRARIES)
        if key not in self._models:
            self._models[key] = deployment_graph(
                self.graph.path,
                target=request.target,
                precision=request.precision,
                batch=request.batch,
                calibration=self.calibration if request.needs_calibration else (),
            )
        return self._models[key]


def write_engine(
    graphs: DeploymentGraphs, request: ExportRequest, folder: Path, *, cache: bool = True
) -> CutEngine:
    """The engine of one cut for one request, its files written to the folder.

    Args:
        graphs: Of an exported cut.
        request: What to make of it.
        folder: An existing folder.
        cache: Take a TensorRT engine that was built before, and keep a new one.

    Raises:
        InvalidInputError: what deployment_graph and the target's library refuse.
        BackendUnavailableError: the target's library is not installed, or it needs a GPU.
    """
    cut, model = graphs.graph.cut, graphs.of(request)
    cost = graph_cost(model)
    written = write_graph(model, cut.name, request.key, folder, cache=cache)
    return CutEngine(
        graph=cut.graph,
        backbone=cut.backbone,
        num_blocks=cut.num_blocks,
        fetched=cut.fetched,
        target=request.target,
        precision=request.precision,
        batch=asdict(request.batch),
        sms=written.sms,
        library=written.library,
        files=tuple(path.name for path in written.paths),
        size_bytes=sum(path.stat().st_size for path in written.paths),
        build_s=written.build_s,
        from_cache=written.from_cache,
        multiply_adds=cost.multiply_adds,
        parameters=cost.parameters,
        calibration_scans=len(graphs.calibration) if request.needs_calibration else 0,
        layers=written.layers,
    )


def _write(
    scratch: Path, engines: Sequence[CutEngine], sources: Mapping[str, WeightsSource]
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
        "engines": [asdict(engine) for engine in engines],
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
    return read_whole(as_path(path, KIND), KIND, lambda files: _read_engine_set(files, verify))


def _read_engine_set(opened: FolderFiles, verify: bool) -> EngineSet:
    folder, content = opened.folder, opened.manifest()
    files = content["files"]
    opened.describe(files)
    opened.hold(*files, hashed=verify)
    engines = tuple(CutEngine(**record) for record in content["engines"])
    name = content["embedder"]
    named = {name for engine in engines for name in engine.files} | {name} - {None}
    if unlisted := named - files.keys():
        raise ArtifactError(
            f"{folder / MANIFEST_FILE}: does not list {', '.join(sorted(unlisted))}; {KIND.again}"
        )
    return EngineSet(folder, content["weights"], engines, None if name is None else folder / name)
