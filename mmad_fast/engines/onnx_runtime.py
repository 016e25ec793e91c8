"""ONNX Runtime, on the CPU or on a CUDA device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as status

from mmad_fast.engines import checked_inputs, dynamic_shape_error
from mmad_fast.errors import ArtifactError, BackendUnavailableError, InvalidInputError
from mmad_fast.threads import resolve_num_threads

VERSION: str = onnxruntime.__version__
PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's name for each device."""
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

    def __init__(
        self,
        path: Path,
        *,
        num_threads: int | None = None,
        device: str = "cpu",
        device_index: int = 0,
        stream: int = 0,
    ) -> None:
        """Loads the graph.

        Args:
            path: The ONNX file.
            num_threads: Threads per run on the CPU; None means mmad_fast.threads.get_num_threads().
            device: A name in PROVIDERS.
            device_index: Which CUDA device.
            stream: The CUDA stream of every run, as an address; 0 leaves the choice to ONNX
                Runtime, which then waits for the device at the end of a run.

        Raises:
            InvalidInputError: num_threads is not in 1..1024.
            ArtifactError: the file cannot be loaded or has dynamic shapes.
            BackendUnavailableError: ONNX Runtime fell back to another device.
        """
        options = session_options(resolve_num_threads(num_threads))
        _share_arena()
        self._path = path
        self._memory = "cpu" if PROVIDERS[device] == PROVIDERS["cpu"] else device
        self._device_index = device_index
        providers = [(PROVIDERS[device], _provider_options(self._memory, device_index, stream))]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except _LOAD_ERRORS as error:
            raise ArtifactError(
                f"{path}: ONNX Runtime {VERSION} cannot load the graph: {error}"
            ) from error
        _require_provider(self._session, device)
        # On a stream of the caller's all runs use the session's one cuBLAS and one cuDNN handle,
        # which two threads must not do at a time.
        self._one_at_a_time = Lock()
        self._run_options = onnxruntime.RunOptions()
        if stream:
            # The stream orders this graph and what comes after it: nobody has to wait here.
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
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

    def run_bound(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Reads and writes buffers on the session's device. With a stream it returns before they
        are written.

        Args:
            inputs: Address by input name: contiguous float32 of exactly its shape.
            outputs: Address by output name, likewise; the caller's memory.

        Raises:
            InvalidInputError: a missing or unknown name.
        """
        given, wanted = {**inputs, **outputs}, {**self.input_shapes, **self.output_shapes}
        if set(given) != set(wanted):
            raise InvalidInputError(
                f"{self._path.name}: got buffers {sorted(given)}, the graph needs {sorted(wanted)}"
            )
        binding = self._session.io_binding()
        place = (self._memory, self._device_index, np.float32)
        for name, address in inputs.items():
            binding.bind_input(name, *place, self.input_shapes[name], address)
        for name, address in outputs.items():
            binding.bind_output(name, *place, self.output_shapes[name], address)
        with self._one_at_a_time:
            self._session.run_with_iobinding(binding, self._run_options)


def device_refusal(device: str) -> str | None:
    """Why the installed ONNX Runtime cannot use a device of PROVIDERS, with what to do."""
    provider, available = PROVIDERS[device], onnxruntime.get_available_providers()
    if provider in available:
        return None
    return (
        f"the installed onnxruntime {VERSION} has no {provider} (it has {', '.join(available)}); "
        "replace it: pip uninstall onnxruntime && pip install onnxruntime-gpu"
    )


def _provider_options(memory: str, device_index: int, stream: int) -> dict[str, str]:
    if memory == "cpu":
        return {}
    options = {"device_id": str(device_index), "use_tf32": "0"}  # float32 stays float32
    if stream:
        options["user_compute_stream"] = str(stream)
    return options


def _require_provider(session: onnxruntime.InferenceSession, device: str) -> None:
    """ONNX Runtime goes on without a provider that fails to start; a fallback is no answer."""
    if PROVIDERS[device] not in session.get_providers():
        raise BackendUnavailableError(
            f"ONNX Runtime was asked for {PROVIDERS[device]} and runs on "
            f"{', '.join(session.get_providers())}: the provider did not start, mostly because a "
            "CUDA or cuDNN library of its version is missing; see ONNX Runtime's list of versions, "
            "or use device='cpu'"
        )


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
