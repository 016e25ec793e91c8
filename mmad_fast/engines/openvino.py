"""OpenVINO on the CPU. Needs the `openvino` extra."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mmad_fast.engines import as_it_is, batch_one_shape, checked_inputs
from mmad_fast.engines.graph_check import MAX_LIVE_NUMBERS, check_onnx_graph
from mmad_fast.engines.onnx_file import unfit_graph
from mmad_fast.errors import ArtifactError
from mmad_fast.folder_files import Locate
from mmad_fast.threads import resolve_num_threads

_TELEMETRY = "openvino_telemetry"
OPERATORS = frozenset(
    {
        "Abs", "Add", "Atan", "AvgPool", "Broadcast", "Clamp", "Concat", "Constant", "Convert",
        "ConvertLike", "Convolution", "DepthToSpace", "Divide", "Erf", "Exp",
        "FakeQuantize", "Gather", "Gelu", "GroupConvolution", "MVN", "MatMul", "MaxPool", "Maximum",
        "Minimum", "Multiply", "Negative", "PRelu", "Pad", "Parameter", "Power", "Range",
        "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "Relu", "Reshape", "Result", "Round",
        "ScaledDotProductAttention", "ShapeOf", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt",
        "Squeeze", "StridedSlice", "Subtract", "Swish", "Tanh", "Transpose", "Unsqueeze",
        "VariadicSplit",
    }
)  # fmt: skip
"""Of our graphs, as OpenVINO calls them: none of them loops, branches or reads a file."""


def _import_openvino() -> Any:
    """The package `openvino`, which would report its import to a server otherwise.

    Where its telemetry package cannot be imported, it takes a stub of its own. A process that
    imported openvino before has decided on its own.
    """
    if "openvino" in sys.modules or _TELEMETRY in sys.modules:
        return import_module("openvino")
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        return import_module("openvino")
    finally:
        del sys.modules[_TELEMETRY]


openvino = _import_openvino()
VERSION: str = openvino.__version__.split("-")[0]


class OpenVinoEngine:
    """A graph run by OpenVINO. `run` may be called from several threads.

    Attributes:
        input_shapes: Shape by input name.
        output_shapes: Shape by output name.
    """

    def __init__(
        self, path: Path, *, num_threads: int | None = None, locate: Locate = as_it_is
    ) -> None:
        """Loads and compiles the graph.

        Args:
            path: OpenVINO's .xml with its .bin beside it, or an ONNX file.
            num_threads: Threads per run; None means mmad_fast.threads.get_num_threads().
            locate: Gives the path where each of the files is read.

        Raises:
            InvalidInputError: num_threads is not in 1..1024.
            ArtifactError: the file cannot be loaded, has dynamic shapes, or is none that a detector
                can have.
        """
        settings = compile_settings(resolve_num_threads(num_threads))
        self._path = path
        weights = [path.with_suffix(".bin")] * (path.suffix == ".xml")
        sources = [locate(file) for file in (path, *weights)]
        if path.suffix == ".onnx":
            check_onnx_graph(sources[0], named=path)
        try:
            core = _core()
            model = core.read_model(*map(str, sources))
            self.input_shapes = {port.any_name: _shape(path, port) for port in model.inputs}
            if model.is_dynamic():
                model.reshape({name: list(shape) for name, shape in self.input_shapes.items()})
            _check_model(path, model)
            self.output_shapes = {port.any_name: _shape(path, port) for port in model.outputs}
            self._compiled = core.compile_model(model, "CPU", settings)
        except (RuntimeError, UnicodeDecodeError) as error:  # a name in the file
            raise ArtifactError(
                f"{path}: OpenVINO {VERSION} cannot load the graph: {error}"
            ) from error
        self._idle_requests: list[Any] = []

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The outputs by name.

        Args:
            inputs: One float32 array per graph input, of exactly its shape.

        Raises:
            InvalidInputError: a missing or unknown name, or a wrong shape.
            ArtifactError: OpenVINO cannot run the graph.
        """
        feed = checked_inputs(self._path, inputs, self.input_shapes)
        try:
            request = self._idle_requests.pop()  # atomic: no two threads get the same one
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            results = request.infer(feed, share_inputs=True)  # its outputs are copies
            return {name: results[name] for name in self.output_shapes}
        except RuntimeError as error:
            raise ArtifactError(
                f"{self._path}: OpenVINO {VERSION} cannot run the graph: {error}; run `mmad-fast "
                f"doctor {self._path.parent}`, which names what is damaged"
            ) from error
        finally:
            self._idle_requests.append(request)


def version() -> str:
    """OpenVINO's version."""
    return VERSION


def device_refusal(device: str) -> None:
    """None: where it can be imported, it runs."""


def compile_settings(num_threads: int) -> dict[str, Any]:
    """The settings of a compiled graph, chosen by bench/results/engines.jsonl.

    Args:
        num_threads: Threads per run, the caller's included.
    """
    return {
        # bfloat16 is OpenVINO's own choice on some processors, and changes the answer.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # The compiled kernels use the same cores, between two graphs and from other threads.
        "ENABLE_CPU_PINNING": False,
    }


def _core() -> Any:
    """OpenVINO's core, its CPU plugin loaded on a thread that has ended.

    The plugin gives the thread that loads it an alternate signal stack of its own, and unmaps it
    when the core goes. On a thread that lives on, a core that goes before a younger one, or on
    another thread, leaves that thread an unmapped stack: its next signal with a Python handler,
    Ctrl-C included, would end the process with SIGSEGV. One core for the whole process would keep
    idle executors, whose threads a forked process lacks and waits for.
    """
    core = openvino.Core()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(core.get_versions, "CPU").result()
    return core


def _check_model(path: Path, model: Any) -> None:
    """Looks at a model before it is compiled, which computes its constants.

    Raises:
        ArtifactError: it has another operator than ours, or an array that is too large.
    """
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in OPERATORS:
            problem = f"it has the operator {kind!r}, which none of ours has"
        elif any(_length(port) > MAX_LIVE_NUMBERS for port in node.outputs()):
            problem = f"an output of {kind} has more than {MAX_LIVE_NUMBERS} numbers, or any number"
        else:
            continue
        raise unfit_graph(path, problem)


def _length(port: Any) -> float:
    """Of the numbers of an output; infinite where it is not known beforehand."""
    shape = port.partial_shape
    return math.prod(axis.get_length() for axis in shape) if shape.is_static else math.inf


def _shape(path: Path, port: Any) -> tuple[int, ...]:
    axes = [axis.get_length() if axis.is_static else -1 for axis in port.partial_shape]
    return batch_one_shape(path, port.any_name, axes)
