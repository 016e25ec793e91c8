"""Graph -> TensorRT engine, of TensorRT-RTX (no GPU needed) or of TensorRT (on the GPU at hand)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mmad_fast.engines.tensorrt_library import (
    LIBRARIES,
    TensorRtLibrary,
    check_library,
    gpu_name,
    gpu_refusal,
    gpu_sm,
    import_library,
    library_version,
)
from mmad_fast.engines.tensorrt_log import library_log
from mmad_fast.errors import ArtifactError, BackendUnavailableError, InvalidInputError
from mmad_fast.export.batch import SINGLE, Batch
from mmad_fast.export.deployment_graph import check_choice
from mmad_fast.export.engine_cache import EngineCache, cache_key
from mmad_fast.export.engine_layers import EngineLayer, parse_layers
from mmad_fast.export.opset import import_onnx
from mmad_fast.export.tensorrt_messages import (
    BuildMessages,
    build_error,
    build_messages,
    taking_stderr,
)
from mmad_fast.whole_folder import whole_file

if TYPE_CHECKING:
    import onnx

ONE_BUILD_AT_A_TIME = Lock()
"""The library writes some of its errors to the process's stderr, which is ours while it builds."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and how it came about.

    Attributes:
        path: Its file.
        library: What built it, with its version, e.g. "tensorrt-rtx 1.7.1.116".
        sms: The compute capabilities that it runs on.
        build_s: How long building it took, then, where it comes from the cache.
        layers: What the engine inspector says of it.
        from_cache: It was not built but found.
    """

    path: Path
    library: str
    sms: tuple[int, ...]
    build_s: float
    layers: tuple[EngineLayer, ...]
    from_cache: bool


def build_engine(
    model: onnx.ModelProto,
    path: Path | str,
    *,
    target: str,
    precision: str,
    sms: Sequence[int] = (),
    batch: Batch = SINGLE,
    cache: EngineCache | None = None,
) -> BuiltEngine:
    """The engine of a graph, written whole or not at all.

    The network is strongly typed: the graph says which tensor has which type. float32 is float32,
    not TF32. An engine for several compute capabilities is one program for all of them; its kernels
    are those that all of them can run.

    Args:
        model: What `deployment_graph` gives for this target, precision and batch.
        path: Where to write; an existing file is replaced.
        target: A name in mmad_fast.engines.tensorrt_library.LIBRARIES.
        precision: That of the graph. In fp32 TensorRT has no fused attention kernel.
        sms: Compute capabilities, e.g. 89. TensorRT-RTX needs them; TensorRT builds for the GPU at
            hand, which is what they may name.
        batch: The batch sizes; a dynamic one becomes the optimisation profile.
        cache: Where engines are kept; None: built in any case.

    Raises:
        InvalidInputError: an unknown target, precision or compute capability, one that cannot run
            the precision, or a model that is no valid graph of this batch with float32 inputs and
            outputs.
        MissingDependencyError: onnx is not installed.
        BackendUnavailableError: the library, or the GPU it needs, is not there.
        EngineBuildError: TensorRT cannot read or build the graph; the message has its errors.
        ArtifactError: the engine cannot be written.
    """
    path = Path(path)
    library = check_library(target)
    check_choice("precision", precision, tuple(library.oldest_sm))
    trt = import_library(target)
    _check_version(trt, library)
    wanted = _resolve_sms(library, precision, sms)
    graph = _checked_graph(model, batch)
    version = library_version(target)
    key = cache_key(
        graph,
        library=version,
        precision=precision,
        sms=wanted,
        batch=[batch.min, batch.opt, batch.max],
        gpu=gpu_name() if library.sms is None else None,
    )
    with _writing(path) as partial:
        found = None if cache is None else cache.fetch(key, partial)
        if found is not None:
            build_s, layers = found.build_s, found.layers
        else:
            started = time.perf_counter()
            engine, layers = _build(trt, library, graph, wanted, batch)
            build_s = time.perf_counter() - started
            partial.write_bytes(engine)
            if cache is not None:
                _keep(cache, key, partial, build_s, layers)
    return BuiltEngine(path, version, wanted, build_s, layers, from_cache=found is not None)


def _check_version(trt: ModuleType, library: TensorRtLibrary) -> None:
    """Raises where the library is too old for networks whose types are those of the graph.

    Raises:
        BackendUnavailableError: it is.
    """
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        raise BackendUnavailableError(
            f"{library.title} {trt.__version__} has no strongly typed networks; {library.title} 10 "
            "or newer is needed: on a Jetson it comes with JetPack 6, elsewhere run: "
            f"{library.install}"
        )


def _resolve_sms(library: TensorRtLibrary, precision: str, sms: Sequence[int]) -> tuple[int, ...]:
    """The compute capabilities to build for, each once, ascending.

    Raises:
        InvalidInputError: none, an unknown one, or one that cannot run the precision.
        BackendUnavailableError: the library needs a GPU and there is none.
    """
    if any(isinstance(sm, bool) or not isinstance(sm, int) for sm in sms):
        raise InvalidInputError(f"sms are {list(sms)}; they must be whole numbers, e.g. 89 for 8.9")
    wanted = tuple(sorted(set(sms)))
    if library.sms is None:
        wanted = _gpu_at_hand(library, wanted)
    else:
        _check_sms(library, wanted)
    oldest = library.oldest_sm[precision]
    too_old = [sm for sm in wanted if sm < oldest]
    if too_old:
        able = ", ".join(name for name, sm in library.oldest_sm.items() if sm <= too_old[0])
        raise InvalidInputError(
            f"{library.title} has no {precision} on sm_{too_old[0]}, it needs sm_{oldest} or newer;"
            f" sm_{too_old[0]} runs {able}. Leave it out, or build it for itself in one of these"
        )
    return wanted


def _check_sms(library: TensorRtLibrary, wanted: tuple[int, ...]) -> None:
    known = library.sms or ()
    unknown = [sm for sm in wanted if sm not in known]
    if unknown or not wanted:
        given = ", ".join(f"sm_{sm}" for sm in unknown) if unknown else "no compute capability"
        raise InvalidInputError(
            f"{library.title} was asked for {given}; it builds for "
            f"{', '.join(map(str, known))}. Others (87: Jetson Orin, 90: Hopper, 100: Blackwell of "
            f"data centres) are served by {LIBRARIES['tensorrt'].title}, target 'tensorrt', which "
            "builds on the machine itself"
        )


def _gpu_at_hand(library: TensorRtLibrary, wanted: tuple[int, ...]) -> tuple[int, ...]:
    reason = gpu_refusal()
    if reason is not None:
        raise BackendUnavailableError(
            f"{library.title} builds on the GPU that the engine will run on: {reason}"
        )
    here = gpu_sm()
    if wanted not in ((), (here,)):
        raise InvalidInputError(
            f"sms are {list(wanted)}; {library.title} builds for the GPU at hand only, which is "
            f"sm_{here}: leave sms out, or build on a machine with the other GPU"
        )
    return (here,)


def _checked_graph(model: onnx.ModelProto, batch: Batch) -> bytes:
    """The graph as bytes, valid: TensorRT's parser ends the process with some that are not.

    Raises:
        InvalidInputError: it is not.
        MissingDependencyError: onnx is not installed.
    """
    onnx = import_onnx()
    from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

    if not isinstance(model, onnx.ModelProto):
        raise InvalidInputError(
            f"the model is {type(model).__name__}; it must be an onnx.ModelProto, e.g. what "
            "deployment_graph returns"
        )
    try:
        graph: bytes = model.SerializeToString(deterministic=True)
        onnx.checker.check_model(graph, full_check=True)
    except (EncodeError, ValueError) as error:  # over 2 GiB
        raise InvalidInputError(f"the graph cannot be serialised ({error}); cut it") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvalidInputError(f"the graph is not valid ONNX: {error}") from error
    _check_tensors(model, batch)
    return graph


def _check_tensors(model: onnx.ModelProto, batch: Batch) -> None:
    """Raises unless inputs and outputs are float32 with this batch in front.

    Raises:
        InvalidInputError: they are not, or there are none.
    """
    from onnx import TensorProto

    graph = model.graph
    if not graph.node or not graph.input or not graph.output:
        raise InvalidInputError("the graph is empty; it must have inputs, nodes and outputs")
    for value in (*graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type != TensorProto.FLOAT:
            raise InvalidInputError(
                f"{value.name!r} of the graph is {TensorProto.DataType.Name(tensor.elem_type)}; "
                "inputs and outputs are float32 in every precision: cast inside"
            )
        axes = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim]
        first = -1 if batch.is_dynamic else batch.max
        if axes[:1] != [first] or min(axes[1:], default=1) < 1:
            shown = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
            raise InvalidInputError(
                f"{value.name!r} of the graph has shape {shown}; the batch, its first axis, must "
                f"be {'open' if batch.is_dynamic else batch.max} and the others fixed"
            )


def _build(
    trt: ModuleType,
    library: TensorRtLibrary,
    graph: bytes,
    sms: tuple[int, ...],
    batch: Batch,
) -> tuple[Any, tuple[EngineLayer, ...]]:
    """(a buffer with the engine, its layers).

    Raises:
        EngineBuildError: TensorRT refuses.
    """
    log = library_log(trt)
    with ONE_BUILD_AT_A_TIME, taking_stderr() as spilled, build_messages(log) as messages:
        try:
            builder = trt.Builder(log)
        except TypeError as error:  # what the binding raises where the library returns null
            raise build_error(library, "does not start", messages.errors, spilled()) from error
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(graph):
            found = [parser.get_error(index) for index in range(parser.num_errors)]
            errors = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in found]
            raise build_error(library, "cannot read the graph", errors, spilled())
        config = _config(trt, library, builder, network, sms, batch)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise build_error(library, "cannot build the graph", messages.errors, spilled())
        return engine, _layers(trt, library, log, messages, engine)


def _config(
    trt: ModuleType,
    library: TensorRtLibrary,
    builder: Any,
    network: Any,
    sms: tuple[int, ...],
    batch: Batch,
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the list of layers
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    if library.sms is not None:
        config.num_compute_capabilities = len(sms)
        for index, sm in enumerate(sms):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    if batch.is_dynamic:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            rest = tuple(tensor.shape)[1:]
            sizes = ((size, *rest) for size in (batch.min, batch.opt, batch.max))
            profile.set_shape(tensor.name, *sizes)
        config.add_optimization_profile(profile)
    return config


def _layers(
    trt: ModuleType, library: TensorRtLibrary, log: Any, messages: BuildMessages, engine: Any
) -> tuple[EngineLayer, ...]:
    """The engine's layers: from the builder's log; TensorRT, which has a GPU, asks the inspector.

    None where a version of the library does not say."""
    if messages.layers:
        return parse_layers(messages.layers[-1])
    if library.sms is not None:
        return ()
    loaded = trt.Runtime(log).deserialize_cuda_engine(engine)
    if loaded is None:
        raise build_error(library, "cannot load the engine that it has built", messages.errors, "")
    information = loaded.create_engine_inspector().get_engine_information(
        trt.LayerInformationFormat.JSON
    )
    return parse_layers(information)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """A file to write beside the target, which takes its place at the end.

    Raises:
        ArtifactError: it cannot be written.
    """
    try:
        with whole_file(path) as partial:
            yield partial
    except OSError as error:
        raise ArtifactError(
            f"{path}: the engine cannot be written ({error.strerror or error}); choose a folder "
            "with room where you may write"
        ) from error


def _keep(
    cache: EngineCache, key: str, engine: Path, build_s: float, layers: tuple[EngineLayer, ...]
) -> None:
    """Stores the engine; a cache that cannot be written costs the next build, not this one."""
    try:
        cache.store(key, engine, build_s=build_s, layers=layers)
    except ArtifactError as error:
        warnings.warn(str(error), stacklevel=3)
