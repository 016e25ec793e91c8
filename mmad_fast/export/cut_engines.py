"""The engines of one cut backbone, for every target and precision that is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from mmad_fast.data.scan_file import ScanFile
from mmad_fast.engines.tensorrt_library import LIBRARIES, gpu_refusal, library_refusal
from mmad_fast.errors import EmptyScanError, InvalidInputError
from mmad_fast.export.backbone_cut import BackboneCut, CutGraph
from mmad_fast.export.batch import SINGLE, Batch
from mmad_fast.export.deployment_graph import PRECISIONS, TARGETS, deployment_graph
from mmad_fast.scan import Scan, Unit

if TYPE_CHECKING:
    import onnx

PRECISIONS_TO_CALIBRATE = ("int8", "fp8")


@dataclass(frozen=True)
class EngineRequest:
    """What to build of every cut, besides its weights. Checked when it is made.

    Attributes:
        targets: Names in deployment_graph.TARGETS.
        precisions: Names in deployment_graph.PRECISIONS.
        sms: Compute capabilities that a TensorRT-RTX engine serves, all in one file.
        batch: Static, or the profile of a dynamic batch.
        use_cache: Take TensorRT engines that were built before from the user's cache, and keep new
            ones there.
    """

    targets: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp16",)
    sms: tuple[int, ...] = ()
    batch: Batch = SINGLE
    use_cache: bool = True

    def __post_init__(self) -> None:
        for what, given, known in (
            ("target", self.targets, TARGETS),
            ("precision", self.precisions, PRECISIONS),
        ):
            unknown = [name for name in given if name not in known]
            if unknown or not given:
                raise InvalidInputError(
                    f"there is no {what} {', '.join(map(repr, unknown)) or '(none was given)'}; "
                    f"known are {', '.join(known)}"
                )
        if "tensorrt-rtx" in self.targets and not self.sms:
            raise InvalidInputError(
                "target 'tensorrt-rtx' needs the compute capabilities to build for, e.g. --sm 89 "
                f"(it builds for {', '.join(map(str, LIBRARIES['tensorrt-rtx'].sms or ()))})"
            )

    @property
    def needs_calibration(self) -> bool:
        """Whether a precision is rounded to ranges that scans give."""
        return any(name in PRECISIONS_TO_CALIBRATE for name in self.precisions)

    def refusal(self) -> str | None:
        """Why a target cannot be built here, with what to do; None where all can."""
        for target in self.targets:
            reason = library_refusal(target) if target in LIBRARIES else None
            if reason is None and target in LIBRARIES and LIBRARIES[target].sms is None:
                reason = gpu_refusal()
            if reason is not None:
                return f"target {target!r} cannot be built here: {reason}"
        return None


@dataclass(frozen=True)
class EngineRecord:
    """What is known of one engine.

    Attributes:
        graph: Which graph of a detector it would be: "rgb" or "points".
        backbone: A name in RGB_BACKBONES, or "point-mae".
        num_blocks: Blocks that are in it.
        fetched: Of Point-MAE the 0-based blocks whose outputs are concatenated.
        target: What opens it.
        precision: Of the products.
        batch: {"min", "opt", "max"}.
        sms: Compute capabilities that it serves; empty where it is not for a GPU.
        library: What built it, with its version.
        files: The first is the one that is opened.
        size_bytes: Of the files together.
        build_s: From the deployment graph to the engine; of a cached one, when it was built.
        from_cache: It was built before.
        multiply_adds: Of one run.
        parameters: Numbers in the graph's weights.
        calibration_scans: How many gave the ranges.
        layers: Of a TensorRT engine: what its layers are (engine_layers.LayerSummary).
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
    calibration_scans: int = 0
    layers: Mapping[str, Any] | None = None


class Written(NamedTuple):
    """An engine's files and what building it said; see EngineRecord."""

    files: tuple[str, ...]
    library: str
    build_s: float
    from_cache: bool = False
    layers: Mapping[str, Any] | None = None


def calibration_inputs(
    graph: CutGraph, scans: Sequence[ScanFile | Scan], unit: Unit = "m"
) -> list[dict[str, NDArray]]:
    """What the graph gets from each scan; those without foreground are left out.

    Raises:
        EmptyScanError: none is left.
    """
    inputs = []
    for scan in scans:
        try:
            inputs.append(graph.inputs_of(scan, unit=unit))
        except EmptyScanError:
            continue
    if not inputs:
        raise EmptyScanError(
            f"none of the {len(scans)} calibration scans has enough foreground; check the unit of "
            "the files"
        )
    return inputs


def build_engines(
    graph: CutGraph,
    folder: Path,
    request: EngineRequest,
    *,
    calibration: Sequence[Mapping[str, NDArray]] = (),
) -> Iterator[EngineRecord]:
    """The record of every precision and target of one graph, its files written to the folder.

    Args:
        graph: An exported cut.
        folder: An existing folder.
        request: What to build.
        calibration: Inputs of the graph for int8 and fp8.

    Raises:
        InvalidInputError: what deployment_graph and build_engine refuse.
        BackendUnavailableError: a library is not installed.
    """
    from mmad_fast.export.graph_cost import graph_cost

    for precision in request.precisions:
        calibrated = precision in PRECISIONS_TO_CALIBRATE
        for target in request.targets:
            model = deployment_graph(
                graph.path,
                target=target,
                precision=precision,
                batch=request.batch,
                calibration=calibration if calibrated else (),
            )
            cost = graph_cost(model)
            written = _write_engine(model, folder, graph.cut, target, precision, request)
            yield EngineRecord(
                graph=graph.cut.graph,
                backbone=graph.cut.backbone,
                num_blocks=graph.cut.num_blocks,
                fetched=graph.cut.fetched,
                target=target,
                precision=precision,
                batch=asdict(request.batch),
                sms=_sms(target, request),
                size_bytes=sum((folder / name).stat().st_size for name in written.files),
                multiply_adds=cost.multiply_adds,
                parameters=cost.parameters,
                calibration_scans=len(calibration) if calibrated else 0,
                **written._asdict(),
            )


def _sms(target: str, request: EngineRequest) -> tuple[int, ...]:
    """The compute capabilities that go into an engine of the target."""
    return tuple(sorted(set(request.sms))) if target == "tensorrt-rtx" else ()


def _stem(cut: BackboneCut, target: str, precision: str, request: EngineRequest) -> str:
    sms = "-".join(f"sm{sm}" for sm in _sms(target, request))
    batch = request.batch
    sizes = f"{batch.min}-{batch.opt}-{batch.max}" if batch.is_dynamic else f"{batch.max}"
    parts = (cut.name, precision, sms, "" if sizes == "1" else f"batch{sizes}")
    return ".".join(part for part in parts if part)


def _write_engine(
    model: onnx.ModelProto,
    folder: Path,
    cut: BackboneCut,
    target: str,
    precision: str,
    request: EngineRequest,
) -> Written:
    """Writes one engine's files and says what they are."""
    import onnx

    stem, start = _stem(cut, target, precision, request), time.perf_counter()
    if target == "onnx":
        path = folder / f"{stem}.onnx"
        onnx.save_model(model, path)
        return Written((path.name,), f"onnx {onnx.__version__}", time.perf_counter() - start)
    if target == "openvino":
        from mmad_fast.engines import engine_version
        from mmad_fast.export.openvino_model import save_openvino_model

        files = save_openvino_model(model, folder / f"{stem}.openvino.xml", precision=precision)
        library = f"openvino {engine_version('openvino')}"
        return Written(tuple(f.name for f in files), library, time.perf_counter() - start)
    from mmad_fast.export.engine_cache import EngineCache
    from mmad_fast.export.engine_layers import summarize
    from mmad_fast.export.tensorrt_engine import build_engine

    engine = build_engine(
        model,
        folder / f"{stem}.{target}.engine",
        target=target,
        precision=precision,
        sms=_sms(target, request),
        batch=request.batch,
        cache=EngineCache() if request.use_cache else None,
    )
    layers = asdict(summarize(engine.layers))
    return Written((engine.path.name,), engine.library, engine.build_s, engine.from_cache, layers)
