"""Engines run a frozen graph: NumPy arrays by name in and out, or buffers on a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import ArtifactError, BackendUnavailableError, InvalidInputError
from mmad_fast.folder_files import Locate


class EngineEntry(NamedTuple):
    """Where an engine is implemented, what it opens, and how to get what it needs.

    Attributes:
        module: Imported when the engine is used. It has `version(**options)`, that of the library
            behind the engine, and `device_refusal(device, **options)`, why that library cannot use
            a device here.
        class_name: The engine's class in it.
        install: The command that installs what the module imports.
        devices: Where it can run a graph, if the installed build can. On "cpu" it takes and
            returns NumPy arrays, even where it computes on a GPU.
        reads: The export targets whose files it opens, the one made for it first.
        options: What tells the class which library or provider it is to use.
    """

    module: str
    class_name: str
    install: str
    devices: tuple[str, ...] = ("cpu",)
    reads: tuple[str, ...] = ("onnx",)
    options: Mapping[str, str] = MappingProxyType({})


_ONNX_RUNTIME = ("mmad_fast.engines.onnx_runtime", "OnnxRuntimeEngine")
_TENSORRT = ("mmad_fast.engines.tensorrt", "TensorRtEngine")
DEVICES: tuple[str, ...] = ("cpu", "cuda")

ENGINES: dict[str, EngineEntry] = {
    "tensorrt-rtx": EngineEntry(
        *_TENSORRT,
        "pip install 'mmad-fast[tensorrt-rtx]'",
        DEVICES,
        ("tensorrt-rtx",),
        {"library": "tensorrt-rtx"},
    ),
    "tensorrt": EngineEntry(
        *_TENSORRT,
        "pip install tensorrt 'mmad-fast[gpu]'",
        DEVICES,
        ("tensorrt",),
        {"library": "tensorrt"},
    ),
    "onnxruntime": EngineEntry(*_ONNX_RUNTIME, "pip install onnxruntime", DEVICES),
    "openvino": EngineEntry(
        "mmad_fast.engines.openvino",
        "OpenVinoEngine",
        "pip install 'mmad-fast[openvino]'",
        reads=("openvino", "onnx"),
    ),
    "onnxruntime-tensorrt-rtx": EngineEntry(
        *_ONNX_RUNTIME,
        "pip install onnxruntime onnxruntime-ep-nv-tensorrt-rtx",
        DEVICES,
        options={"provider": "tensorrt-rtx"},
    ),
    "onnxruntime-tensorrt": EngineEntry(
        *_ONNX_RUNTIME,
        "pip uninstall onnxruntime && pip install onnxruntime-gpu tensorrt",
        DEVICES,
        options={"provider": "tensorrt"},
    ),
}
"""The engines by name, in the order of preference (docs/decisions.md has the reasons)."""


class Engine(Protocol):
    """A loaded graph.

    Attributes:
        input_shapes: Shape by input name.
        output_shapes: Shape by output name.
    """

    input_shapes: dict[str, tuple[int, ...]]
    output_shapes: dict[str, tuple[int, ...]]

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The outputs by name. Thread-safe."""


class DeviceEngine(Engine, Protocol):
    """A loaded graph whose inputs and outputs may lie on a device."""

    def run_bound(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Runs the graph on buffers of the device it was opened for. Thread-safe."""


def as_it_is(path: Path) -> Path:
    """The path: a file that is of no artifact is read where it is."""
    return path


def open_graph(
    path: Path,
    *,
    engine: str = "onnxruntime",
    num_threads: int | None = None,
    locate: Locate = as_it_is,
) -> Engine:
    """The graph in a file, ready to run on NumPy arrays.

    Args:
        path: A file of a target that the engine reads.
        engine: A name in ENGINES.
        num_threads: Threads per run on the CPU; None means mmad_fast.threads.get_num_threads().
        locate: Gives the path where a file is read; messages call it by its own.

    Raises:
        BackendUnavailableError: no such engine, or it is not installed.
        ArtifactError: the file is no graph that the engine can load.
    """
    check_engine(engine, "cpu")
    return _factory(engine)(path, num_threads=num_threads, locate=locate)


def open_device_graph(
    path: Path,
    *,
    engine: str = "onnxruntime",
    device_index: int = 0,
    stream: int = 0,
    locate: Locate = as_it_is,
) -> DeviceEngine:
    """The graph in a file, ready to run on buffers of a CUDA device.

    Args:
        path: A file of a target that the engine reads.
        engine: A name in ENGINES.
        device_index: Which CUDA device.
        stream: The CUDA stream that every run is ordered in, as an address; 0 is the default one.
        locate: As in `open_graph`.

    Raises:
        BackendUnavailableError: no such engine, it is not installed, or it cannot use the device.
        ArtifactError: the file is no graph that the engine can load.
    """
    check_engine(engine, "cuda")
    return _factory(engine)(
        path, device="cuda", device_index=device_index, stream=stream, locate=locate
    )


def _factory(engine: str) -> Any:
    entry = ENGINES[engine]
    return partial(getattr(import_module(entry.module), entry.class_name), **entry.options)


def check_engine(engine: str, device: str) -> None:
    """Raises if this engine cannot serve this device here.

    Raises:
        InvalidInputError: a name is no string.
        BackendUnavailableError: no such engine or device; the message lists the known ones. Or the
            engine is not installed; the message has the command that installs it.
    """
    check_name("engine", engine, ENGINES)
    check_name("device", device, DEVICES)
    if engine not in ENGINES:
        raise BackendUnavailableError(
            f"there is no engine {engine!r}; known are {', '.join(ENGINES)}"
        )
    if device not in ENGINES[engine].devices:
        raise BackendUnavailableError(
            f"engine {engine!r} cannot run on device {device!r}; it runs on "
            f"{', '.join(ENGINES[engine].devices)}"
        )
    reason = engine_refusal(engine, device)
    if reason is not None:
        where = "here" if device == "cpu" else f"on device {device!r} here"
        raise BackendUnavailableError(f"engine {engine!r} cannot run {where}: {reason}")


def check_name(what: str, name: object, known: Iterable[str], *, otherwise: str = "") -> None:
    """Raises if the name of `what` is no string; the message lists the known ones.

    Raises:
        InvalidInputError: it is none.
    """
    if not isinstance(name, str):
        raise InvalidInputError(
            f"{what} is {name!r}; it must be a name, one of {', '.join(known)}{otherwise}"
        )


def engine_refusal(engine: str, device: str = "cpu") -> str | None:
    """Why an engine of ENGINES cannot run on a device of its own here, with what to do; None where
    it can."""
    entry = ENGINES[engine]
    try:
        module = import_module(entry.module)
    except ImportError as error:
        if str(error.name).startswith("mmad_fast"):  # installing a library would not help
            raise
        return f"{engine} cannot be imported ({error}); install with: {entry.install}"
    reason: str | None = module.device_refusal(device, **entry.options)
    return reason


def engine_version(engine: str) -> str:
    """The version of the library behind an engine of ENGINES that `engine_refusal` accepts."""
    entry = ENGINES[engine]
    return str(import_module(entry.module).version(**entry.options))


def checked_inputs(
    path: Path, inputs: Mapping[str, NDArray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """The inputs as contiguous float32, in the order of `shapes`; for engines.

    Args:
        path: The graph's file, for messages.
        inputs: Array by name.
        shapes: What the graph takes: shape by name.

    Raises:
        InvalidInputError: a missing or unknown name, or a wrong shape.
    """
    if set(inputs) != set(shapes):
        raise InvalidInputError(
            f"{path.name}: got inputs {sorted(inputs)}, the graph needs {sorted(shapes)}"
        )
    feed = {name: np.ascontiguousarray(inputs[name], np.float32) for name in shapes}
    for name, array in feed.items():
        if array.shape != shapes[name]:
            raise InvalidInputError(
                f"{path.name}: input {name!r} has shape {array.shape}, the graph needs "
                f"{shapes[name]}"
            )
    return feed


def batch_one_shape(path: Path, name: str, shape: Sequence[object]) -> tuple[int, ...]:
    """The shape with a free first axis as 1: that is the batch, and a detector runs scan by scan;
    for engines.

    Args:
        path: The graph's file, for the message.
        name: The input or output.
        shape: Its axes; a free one is no integer, or negative.

    Raises:
        ArtifactError: another axis is free.
    """
    axes = [axis if isinstance(axis, int) and axis >= 0 else None for axis in shape]
    if None in axes[1:]:
        shown = tuple("free" if axis is None else axis for axis in axes)
        raise ArtifactError(
            f"{path}: {name!r} has the dynamic shape {shown}; only the batch of a detector's graph "
            "may be free, export it again"
        )
    return tuple(1 if axis is None else axis for axis in axes)
