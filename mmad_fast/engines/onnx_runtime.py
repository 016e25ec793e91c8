"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as status

from mmad_fast.engines import checked_inputs, dynamic_shape_error
from mmad_fast.errors import ArtifactError
from mmad_fast.threads import resolve_num_threads

VERSION: str = onnxruntime.__version__
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
        options = session_options(resolve_num_threads(num_threads))
        _share_arena()
        self._path = path
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except _LOAD_ERRORS as error:
            raise ArtifactError(
                f"{path}: ONNX Runtime {VERSION} cannot load the graph: {error}"
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
        feed = checked_inputs(self._path, inputs, self.input_shapes)
        outputs = self._session.run(list(self.output_shapes), feed)
        return dict(zip(self.output_shapes, outputs, strict=True))


def session_options(num_threads: int) -> onnxruntime.SessionOptions:
    """The options of a session, chosen by bench/engines.py; docs/decisions.md has the figures.

    Args:
        num_threads: Threads per run, the caller's included.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Idle threads that spin would take the cores from the compiled kernels between two graphs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # One arena for all graphs: they run one after the other, so the largest one's need is enough.
    options.add_session_config_entry("session.use_env_allocators", "1")
    # The pattern of the first run is laid out in a second block beside the arena that already
    # serves it; the planned reuse keeps a buffer until the last of its tensors is dead. Without
    # both, a tensor is returned to the arena when it is dead: less memory at the same speed.
    options.enable_mem_pattern = False
    options.enable_mem_reuse = False
    return options


@lru_cache(maxsize=1)
def _share_arena() -> None:
    """Makes the arena that the sessions with use_env_allocators share, for this process."""
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        ),
        onnxruntime.OrtArenaCfg({"max_mem": 0}),
    )


def _static_shapes(path: Path, arguments: list) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for argument in arguments:
        if not all(isinstance(axis, int) for axis in argument.shape):
            raise dynamic_shape_error(path, argument.name, argument.shape)
        shapes[argument.name] = tuple(argument.shape)
    return shapes
