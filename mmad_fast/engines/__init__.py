"""Engines run a frozen graph. Each takes and returns NumPy arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from mmad_fast.errors import BackendUnavailableError, InvalidInputError

ENGINES: dict[str, str] = {"onnxruntime": "mmad_fast.engines.onnx_runtime:OnnxRuntimeEngine"}
"""Engine classes by name, in the order of preference. Imported when used."""

DEVICES: tuple[str, ...] = ("cpu",)


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


def open_graph(
    path: Path, *, engine: str = "onnxruntime", device: str = "cpu", num_threads: int | None = None
) -> Engine:
    """The graph in an ONNX file, ready to run.

    Args:
        path: The ONNX file.
        engine: A name in ENGINES.
        device: A name in DEVICES.
        num_threads: Threads per run; None means mmad_fast.threads.get_num_threads().

    Raises:
        BackendUnavailableError: no such engine or device.
        ArtifactError: the file is no graph that the engine can load.
    """
    check_engine(engine, device)
    module, name = ENGINES[engine].split(":")
    factory: Any = getattr(import_module(module), name)
    return factory(path, num_threads=num_threads)


def check_engine(engine: str, device: str) -> None:
    """Raises if this engine cannot serve this device here.

    Raises:
        InvalidInputError: a name is no string.
        BackendUnavailableError: no such engine or device; the message lists the known ones.
    """
    for what, name, known in (("engine", engine, ENGINES), ("device", device, DEVICES)):
        if not isinstance(name, str):
            raise InvalidInputError(
                f"{what} is {name!r}; it must be a name, one of {', '.join(known)}"
            )
    if engine not in ENGINES:
        raise BackendUnavailableError(
            f"there is no engine {engine!r}; known are {', '.join(ENGINES)}"
        )
    if device not in DEVICES:
        raise BackendUnavailableError(
            f"engine {engine!r} cannot run on device {device!r}; this version runs on "
            f"{', '.join(DEVICES)}"
        )
