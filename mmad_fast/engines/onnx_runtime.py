"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as status

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.threads import resolve_num_threads

_ERRORS_ONLY = 3
# ONNX Runtime raises one class per status code; they share no base below Exception.
_LOAD_ERRORS = (
    status.Fail,
    status.InvalidArgument,
    status.InvalidGraph,
    status.InvalidProtobuf,
    status.NoSuchFile,
    status.NotImplemented,
    status.RuntimeException,
)


class OnnxRuntimeEngine:
    """A graph of static shapes run by ONNX Runtime. `run` may be called from several threads.

    Attributes:
        input_shapes: Shape by input name.
        output_shapes: Shape by output name.
    """

    def __init__(self, path: Path, *, num_threads: int | None = None) -> None:
        """Loads the graph.

        Args:
            path: The ONNX file.
            num_threads: Threads per run; None means mmad_fast.threads.get_num_threads().

        Raises:
            InvalidInputError: num_threads is not in 1..1024.
            ArtifactError: the file cannot be loaded or has dynamic shapes.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = resolve_num_threads(num_threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Idle threads that spin would take the cores from the compiled kernels between two graphs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._path = path
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except _LOAD_ERRORS as error:
            raise ArtifactError(
                f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load the graph: {error}"
            ) from error
        self.input_shapes = _static_shapes(path, self._session.get_inputs())
        self.output_shapes = _static_shapes(path, self._session.get_outputs())

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The outputs by name.

        Args:
            inputs: One float32 array per graph input, of exactly its shape.

        Raises:
            InvalidInputError: a missing or unknown name, or a wrong shape.
        """
        if set(inputs) != set(self.input_shapes):
            raise InvalidInputError(
                f"{self._path.name}: got inputs {sorted(inputs)}, the graph needs "
                f"{sorted(self.input_shapes)}"
            )
        feed = {name: np.ascontiguousarray(array, np.float32) for name, array in inputs.items()}
        for name, array in feed.items():
            if array.shape != self.input_shapes[name]:
                raise InvalidInputError(
                    f"{self._path.name}: input {name!r} has shape {array.shape}, the graph needs "
                    f"{self.input_shapes[name]}"
                )
        outputs = self._session.run(list(self.output_shapes), feed)
        return dict(zip(self.output_shapes, outputs, strict=True))


def _static_shapes(path: Path, arguments: list) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for argument in arguments:
        if not all(isinstance(axis, int) for axis in argument.shape):
            raise ArtifactError(
                f"{path}: {argument.name!r} has the dynamic shape {argument.shape}; detector "
                "graphs have static shapes, export it again"
            )
        shapes[argument.name] = tuple(argument.shape)
    return shapes
