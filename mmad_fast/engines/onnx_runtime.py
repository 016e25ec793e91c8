"""ONNX Runtime: on the CPU, on a CUDA device, and through TensorRT.

ONNX Runtime calls what runs a graph its execution provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as status

from mmad_fast.cache_folder import cache_root
from mmad_fast.engines import as_it_is, batch_one_shape, checked_inputs
from mmad_fast.engines.graph_check import check_onnx_graph
from mmad_fast.errors import ArtifactError, BackendUnavailableError, InvalidInputError
from mmad_fast.folder_files import Locate
from mmad_fast.threads import resolve_num_threads
from mmad_fast.whole_folder import fingerprint

VERSION: str = onnxruntime.__version__
PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
"""ONNX Runtime's names of execution providers: the default one of each device ("cpu", "cuda"), and
those that the engines onnxruntime-tensorrt and onnxruntime-tensorrt-rtx ask for."""
INSTALL: dict[str, str] = {
    "cpu": "onnxruntime",
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu tensorrt",
}
"""The packages that have each provider; they all provide the module onnxruntime."""
PLUGINS: dict[str, tuple[str, str]] = {
    "tensorrt-rtx": ("onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx"),
}
"""The module and the package that add a provider to any ONNX Runtime of 1.24 and newer."""
_ERRORS_ONLY = 3
_CPU_FALLBACK = "fallback to CPU EP"
# ONNX Runtime raises one class per status code; they share no base below Exception.
_ERRORS = (
    status.Fail,
    status.InvalidArgument,
    status.InvalidGraph,
    status.InvalidProtobuf,
    status.NoSuchFile,
    status.NotImplemented,
    status.RuntimeException,
)


class OnnxRuntimeEngine:
    """A graph run by ONNX Runtime. `run` may be called from several threads.

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
        provider: str | None = None,
        locate: Locate = as_it_is,
    ) -> None:
        """Loads the graph.

        Args:
            path: The ONNX file.
            num_threads: Threads per run on the CPU; None means mmad_fast.threads.get_num_threads().
            device: Where buffers of `run_bound` lie, "cpu" or "cuda".
            device_index: Which CUDA device.
            stream: The CUDA stream of every run, as an address; 0 leaves the choice to ONNX
                Runtime, which then waits for the device at the end of a run.
            provider: A name in PROVIDERS; None: that of the device.
            locate: Gives the path where the file is read.

        Raises:
            InvalidInputError: num_threads is not in 1..1024.
            ArtifactError: the file cannot be loaded, has dynamic shapes, or is none that a detector
                can have, see graph_check.
            BackendUnavailableError: ONNX Runtime would run some of the graph elsewhere.
        """
        threads = resolve_num_threads(num_threads)
        name = PROVIDERS[provider or device]
        is_on_cpu = name == PROVIDERS["cpu"]
        _share_arena()
        self._path = path
        self._memory = "cuda" if device == "cuda" and not is_on_cpu else "cpu"
        self._device_index = device_index
        source = locate(path)
        check_onnx_graph(source, named=path)
        options = {} if is_on_cpu else _provider_options(name, source, device_index, stream)
        self._session = _open_session(path, source, threads, name, options)
        # On a stream of the caller's all runs use the session's one cuBLAS and one cuDNN handle,
        # which two threads must not do at a time.
        self._one_at_a_time = Lock()
        self._run_options = onnxruntime.RunOptions()
        if stream:
            # The stream orders this graph and what comes after it: nobody has to wait here.
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.input_shapes = _shapes(path, self._session.get_inputs())
        self.output_shapes = _shapes(path, self._session.get_outputs())

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The outputs by name.

        Args:
            inputs: One float32 array per graph input, of exactly its shape.

        Raises:
            InvalidInputError: a missing or unknown name, or a wrong shape.
            ArtifactError: ONNX Runtime cannot run the graph.
        """
        feed = checked_inputs(self._path, inputs, self.input_shapes)
        try:
            outputs = self._session.run(list(self.output_shapes), feed)
        except _ERRORS as error:
            raise self._cannot_run(error) from error
        return dict(zip(self.output_shapes, outputs, strict=True))

    def run_bound(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Reads and writes buffers on the session's device. With a stream it returns before they
        are written.

        Args:
            inputs: Address by input name: contiguous float32 of exactly its shape.
            outputs: Address by output name, likewise; the caller's memory.

        Raises:
            InvalidInputError: a missing or unknown name.
            ArtifactError: ONNX Runtime cannot run the graph.
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
        try:
            with self._one_at_a_time:
                self._session.run_with_iobinding(binding, self._run_options)
        except _ERRORS as error:
            raise self._cannot_run(error) from error

    def _cannot_run(self, error: Exception) -> ArtifactError:
        return ArtifactError(
            f"{self._path}: ONNX Runtime {VERSION} cannot run the graph: {error}; run `mmad-fast "
            f"doctor {self._path.parent}`, which names what is damaged"
        )


def version(**_: str) -> str:
    """ONNX Runtime's version, the same for all providers."""
    return VERSION


def device_refusal(device: str, provider: str | None = None) -> str | None:
    """Why the installed ONNX Runtime has not a provider of PROVIDERS, with what to do. None as
    provider means that of the device."""
    key = provider or device
    available = onnxruntime.get_available_providers()
    if PROVIDERS[key] in available:
        return None
    if key in PLUGINS:
        return _plugin_refusal(*PLUGINS[key], PROVIDERS[key])
    return (
        f"the installed onnxruntime {VERSION} has no {PROVIDERS[key]} (it has "
        f"{', '.join(available)}); replace it: pip uninstall onnxruntime && pip install "
        f"{INSTALL[key]}"
    )


def _plugin_refusal(module: str, package: str, provider: str) -> str | None:
    """Why a plugin cannot be used here, registered if it can; None where it can."""
    if find_spec(module) is None:
        return f"it needs a plugin of ONNX Runtime; install it: pip install {package}"
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return (
            f"onnxruntime {VERSION} takes no plugins; upgrade it: pip install 'onnxruntime>=1.24'"
        )
    problem = _register_plugin(module)
    if problem is not None:
        return f"{package} does not load ({problem}); install NVIDIA's driver for it"
    if not _plugin_devices(provider):
        return f"{package} finds no GPU that it can use; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


@lru_cache
def _register_plugin(module: str) -> str | None:
    """Adds a plugin to ONNX Runtime, for this process; why not where that fails."""
    plugin = import_module(module)
    try:
        onnxruntime.register_execution_provider_library(
            plugin.get_ep_name(), plugin.get_library_path()
        )
    except _ERRORS as error:
        return str(error)
    return None


def _plugin_devices(provider: str) -> list[Any]:
    """The GPUs that a registered plugin offers, in CUDA's order."""
    find = getattr(onnxruntime, "get_ep_devices", list)  # not in older versions
    return [device for device in find() if device.ep_name == provider]


def _start_session(
    path: Path, settings: onnxruntime.SessionOptions, provider: str, options: dict[str, str]
) -> onnxruntime.InferenceSession:
    """A session as ONNX Runtime makes it, with a provider that is built in or a plugin's."""
    devices = _plugin_devices(provider) if options else []
    if not devices or provider in onnxruntime.get_available_providers():
        return onnxruntime.InferenceSession(
            str(path), settings, providers=[(provider, options)], enable_fallback=0
        )
    index = int(options["device_id"])
    if index >= len(devices):
        raise BackendUnavailableError(
            f"there is no CUDA device {index} for {provider}: it finds {len(devices)}"
        )
    settings.add_provider_for_devices(devices[index : index + 1], options)
    return onnxruntime.InferenceSession(str(path), settings, enable_fallback=0)


def _open_session(
    path: Path, source: Path, threads: int, provider: str, options: dict[str, str]
) -> onnxruntime.InferenceSession:
    """A session that runs the whole graph with this provider. It is read from `source`; messages
    call it by its path.

    Raises:
        ArtifactError: the file cannot be loaded.
        BackendUnavailableError: the provider does not start, or knows not all of the graph.
    """
    settings = session_options(threads)
    if provider != PROVIDERS["cpu"]:
        # By default ONNX Runtime runs on the CPU what a provider does not know, and all of the
        # graph where it does not start.
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = _start_session(source, settings, provider, options)
    except _ERRORS as error:
        if _CPU_FALLBACK in str(error):
            raise _left_to_cpu(path, source, threads, provider, options) from error
        is_unknown = isinstance(error, status.NotImplemented)
        instead = "; export it in another precision, or take another engine" * is_unknown
        raise ArtifactError(
            f"{path}: ONNX Runtime {VERSION} cannot load the graph: "
            f"{str(error).replace(str(source), str(path))}{instead}"
        ) from error
    problem = _not_started(session, provider)
    if problem is not None:
        raise problem
    return session


def _left_to_cpu(
    path: Path, source: Path, threads: int, provider: str, options: dict[str, str]
) -> BackendUnavailableError:
    """Why some of the graph would run on the CPU: a session that allows it knows."""
    session = _start_session(source, session_options(threads), provider, options)
    return _not_started(session, provider) or BackendUnavailableError(
        f"{path}: {provider} of ONNX Runtime {VERSION} does not know all operators of the graph, "
        "and would leave the rest to the CPU; export the graph in another precision, upgrade ONNX "
        "Runtime, or use engine='onnxruntime'"
    )


def _not_started(
    session: onnxruntime.InferenceSession, provider: str
) -> BackendUnavailableError | None:
    """ONNX Runtime goes on without a provider that fails to start; a fallback is no answer."""
    if provider in session.get_providers():
        return None
    return BackendUnavailableError(
        f"ONNX Runtime was asked for {provider} and runs on "
        f"{', '.join(session.get_providers())}: the provider did not start, mostly because a "
        "CUDA, cuDNN or TensorRT library of its version is missing; see ONNX Runtime's list of "
        "versions, or use device='cpu' with engine='onnxruntime'"
    )


def _provider_options(provider: str, path: Path, device_index: int, stream: int) -> dict[str, str]:
    """The options of a provider on a GPU.

    The graph has its precision inside, so no provider is told to lower it. TensorRT compiles a
    graph for minutes; what it made is kept in the user's cache, in a folder named by the graph's
    sha256, because TensorRT's own name for it does not depend on the weights.
    """
    options = {"device_id": str(device_index)}
    if stream:
        options |= {"has_user_compute_stream": "1", "user_compute_stream": str(stream)}
    if provider == PROVIDERS["tensorrt"]:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(_cache_folder("onnxruntime-tensorrt", path)),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache_root() / "onnxruntime-tensorrt"),
            "trt_fp16_enable": "0",
            "trt_bf16_enable": "0",
            "trt_int8_enable": "0",
        }
    elif provider == PROVIDERS["tensorrt-rtx"]:
        folder = _cache_folder("onnxruntime-tensorrt-rtx", path)
        options["nv_runtime_cache_path"] = str(folder)
    else:
        options["use_tf32"] = "0"  # float32 stays float32
    return options


def _cache_folder(engine: str, path: Path) -> Path:
    """Where this graph's compiled form is kept; not created here.

    Raises:
        ArtifactError: the graph cannot be read.
    """
    try:
        digest = fingerprint(path)["sha256"]
    except OSError as error:
        raise ArtifactError(
            f"{path}: ONNX Runtime {VERSION} cannot load the graph: {error.strerror or error}"
        ) from error
    return cache_root() / engine / f"{VERSION}-{digest[:32]}"


def session_options(num_threads: int) -> onnxruntime.SessionOptions:
    """The options of a session, chosen by bench/results/engines.jsonl; see docs/decisions.md.

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
    # A memory pattern allocates a second block, of the size that the first run took, beside the
    # arena; planned reuse of a buffer keeps it until the last tensor in it is no longer read.
    # Without both a tensor returns to the arena after its last reader: less memory, same speed.
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


def _shapes(path: Path, arguments: list) -> dict[str, tuple[int, ...]]:
    return {
        argument.name: batch_one_shape(path, argument.name, argument.shape)
        for argument in arguments
    }
