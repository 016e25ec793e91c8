"""TensorRT and TensorRT-RTX on an NVIDIA GPU, through cuda-bindings: no torch, no pycuda.

    run:        NumPy -> pinned -> GPU -> graph -> GPU -> pinned -> NumPy, with one wait
    run_bound:  the caller's buffers, in the caller's stream; nobody waits

The two libraries have one API. TensorRT-RTX compiles kernels for the GPU when an engine is opened;
they are kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import logging
import math
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.engines import as_it_is, checked_inputs
from mmad_fast.engines.tensorrt_library import (
    gpu_refusal,
    import_library,
    library_refusal,
    library_version,
)
from mmad_fast.engines.tensorrt_runtime import LoadedEngine
from mmad_fast.errors import InvalidInputError
from mmad_fast.folder_files import Locate
from mmad_fast.gpu.device_context import Advice, DeviceContext, DriverError
from mmad_fast.threads import resolve_num_threads

logger = logging.getLogger("mmad_fast")

ADVICE = Advice(
    purpose="running a TensorRT engine",
    install="pip install cuda-bindings",
    instead="engine='onnxruntime'",
    on_failure="",
)
FLOAT32_BYTES = 4
MAX_GRAPHS = 8
"""Captured CUDA graphs that are kept: an allocator gives a detector the same few addresses."""


@dataclass(frozen=True)
class _Staging:
    """The place of an input or output of `run`, on the GPU and pinned on the host."""

    device: int
    pinned: int
    array: NDArray[np.float32]
    """The pinned memory."""


class TensorRtEngine:
    """A graph run by TensorRT or TensorRT-RTX. `run` and `run_bound` may be called from several
    threads; they take turns. Close it, or leave it to the garbage collector.

    Attributes:
        input_shapes: Shape by input name.
        output_shapes: Shape by output name.
        graph_refusal: Why no CUDA graph is used although it was asked for; None where one is, or
            none was asked for.
    """

    def __init__(
        self,
        path: Path,
        *,
        library: str = "tensorrt-rtx",
        num_threads: int | None = None,
        device: str = "cpu",
        device_index: int = 0,
        stream: int = 0,
        use_cuda_graph: bool = False,
        locate: Locate = as_it_is,
    ) -> None:
        """Loads the engine onto the GPU, with all the memory that it needs.

        Args:
            path: The engine's file, built by the same version of the library for this GPU.
            library: A name in tensorrt_library.LIBRARIES.
            num_threads: Without effect: a GPU computes. Checked as by other engines.
            device: "cpu": the engine is used with `run`, in a stream of its own. "cuda": with
                `run_bound`; what `run` needs is allocated when it is first called.
            device_index: Which CUDA device.
            stream: The CUDA stream of every run, as an address. 0 makes one, which with
                device="cuda" is ordered with the default stream.
            use_cuda_graph: Capture runs and replay them, which saves the time to launch kernel by
                kernel; once per set of addresses, after a first run that warms up.
            locate: Gives the path where the file is read.

        Raises:
            InvalidInputError: num_threads is not in 1..1024, or no such library.
            BackendUnavailableError: the library, the driver or the device is missing.
            ArtifactError: the file cannot be read, was built for another GPU or by another version,
                or does not take float32 of fixed shape.
            DriverError: the driver or the library refused a call; no memory is left.
        """
        if num_threads is not None:
            resolve_num_threads(num_threads)
        trt = import_library(library)
        self._path = path
        self._lock = Lock()
        self._context = DeviceContext(device_index, ADVICE)
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._bound: tuple[int, ...] | None = None
        self._is_warm = False
        self._use_cuda_graph = use_cuda_graph
        self.graph_refusal: str | None = None
        if use_cuda_graph and device == "cuda" and not stream:
            self._refuse_graphs("the default stream cannot be captured; name a stream")
        self._context.retain()
        try:
            with self._context.current(), ExitStack() as stack:
                self._loaded = LoadedEngine(trt, library, path, self._context.sm)
                stack.callback(self._loaded.drop)
                self._loaded.open(locate(path))
                self.input_shapes = self._loaded.shapes(are_inputs=True)
                self.output_shapes = self._loaded.shapes(are_inputs=False)
                self._stream = stream or self._make_stream(device, stack)
                stack.callback(_destroy_graphs, self._context, self._graphs)
                self._staging = self._allocate(stack) if device == "cpu" else {}
                self._resources = stack.pop_all()
        except BaseException:
            self._context.release()
            raise
        # Whatever the finalizer holds must not hold this object.
        self._finalizer = weakref.finalize(self, _free, self._context, self._resources)

    def __enter__(self) -> TensorRtEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the GPU and frees what the engine holds; a second call does nothing."""
        with self._lock:
            self._finalizer()

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The outputs by name.

        Args:
            inputs: One float32 array per graph input, of exactly its shape.

        Raises:
            InvalidInputError: a missing or unknown name, a wrong shape, or the engine is closed.
            DriverError: the driver or the library refused a call.
        """
        feed = checked_inputs(self._path, inputs, self.input_shapes)
        with self._lock:
            self._require_open()
            with self._context.current():
                return self._run(feed)

    def run_bound(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Reads and writes buffers on the GPU, in the engine's stream; returns before they are
        written.

        Args:
            inputs: Address by input name: contiguous float32 of exactly its shape.
            outputs: Address by output name, likewise; the caller's memory.

        Raises:
            InvalidInputError: a missing or unknown name, or the engine is closed.
            DriverError: the driver or the library refused a call.
        """
        given, wanted = {**inputs, **outputs}, {**self.input_shapes, **self.output_shapes}
        if set(given) != set(wanted):
            raise InvalidInputError(
                f"{self._path.name}: got buffers {sorted(given)}, the graph needs {sorted(wanted)}"
            )
        with self._lock:
            self._require_open()
            with self._context.current():
                self._enqueue(given)

    def _run(self, feed: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray]:
        if not self._staging:
            with ExitStack() as stack:
                self._staging = self._allocate(stack)
                self._resources.push(stack.pop_all())
        call, staging = self._context.call, self._staging
        for name, array in feed.items():
            place = staging[name]
            np.copyto(place.array, array)
            call("cuMemcpyHtoDAsync", place.device, place.pinned, array.nbytes, self._stream)
        self._enqueue({name: place.device for name, place in staging.items()})
        for name in self.output_shapes:
            place = staging[name]
            call("cuMemcpyDtoHAsync", place.pinned, place.device, place.array.nbytes, self._stream)
        call("cuStreamSynchronize", self._stream)
        return {name: staging[name].array.copy() for name in self.output_shapes}

    def _enqueue(self, addresses: Mapping[str, int]) -> None:
        """Hands one run over to the stream."""
        key = tuple(addresses[name] for name in (*self.input_shapes, *self.output_shapes))
        graph = self._graphs.get(key)
        if graph is None:
            if self._bound != key:
                self._bound = None
                self._loaded.bind(addresses)
                self._bound = key
            graph = self._capture(key) if self._is_warm and self._use_cuda_graph else None
        if graph is not None:
            self._context.call("cuGraphLaunch", graph, self._stream)
            return
        self._loaded.enqueue(self._stream)
        if not self._is_warm:
            self._is_warm = True
            self._loaded.save_kernels()

    def _capture(self, key: tuple[int, ...]) -> Any:
        """The run with the bound addresses as a CUDA graph; None where it cannot be captured: the
        engine then works without, and says so once."""
        call, driver = self._context.call, self._context.driver
        reason = self._loaded.capture_refusal(self._stream)
        if reason is None:
            mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            try:
                with ExitStack() as captured:
                    call("cuStreamBeginCapture", self._stream, mode)
                    try:
                        self._loaded.enqueue(self._stream)
                    finally:
                        # Also after an error: the stream would take nothing else.
                        graph = call("cuStreamEndCapture", self._stream)
                        captured.callback(call, "cuGraphDestroy", graph)
                    executable = call("cuGraphInstantiate", graph, 0)
            except DriverError as error:
                reason = str(error)
        if reason is not None:
            self._refuse_graphs(reason)
            return None
        self._graphs[key] = executable
        if len(self._graphs) > MAX_GRAPHS:
            oldest = next(iter(self._graphs))
            # The driver lets a run that is under way finish.
            call("cuGraphExecDestroy", self._graphs.pop(oldest))
        return executable

    def _refuse_graphs(self, reason: str) -> None:
        self._use_cuda_graph = False
        self.graph_refusal = reason
        logger.warning("%s runs without a CUDA graph: %s", self._path.name, reason)

    def _make_stream(self, device: str, stack: ExitStack) -> int:
        flags = self._context.driver.CUstream_flags
        kind = flags.CU_STREAM_NON_BLOCKING if device == "cpu" else flags.CU_STREAM_DEFAULT
        stream = int(self._context.call("cuStreamCreate", int(kind)))
        stack.callback(self._context.call, "cuStreamDestroy", stream)
        return stream

    def _allocate(self, stack: ExitStack) -> dict[str, _Staging]:
        """Memory of every input and output, freed with the stack."""
        call, staging = self._context.call, {}
        for name, shape in {**self.input_shapes, **self.output_shapes}.items():
            length = math.prod(shape)
            size, what = FLOAT32_BYTES * length, f"{self._path.name}: {name!r} {shape}"
            device = int(call("cuMemAlloc", size, doing=what))
            stack.callback(call, "cuMemFree", device)
            pinned = int(call("cuMemAllocHost", size, doing=what))
            stack.callback(call, "cuMemFreeHost", pinned)
            memory = (ctypes.c_float * length).from_address(pinned)
            staging[name] = _Staging(device, pinned, np.ctypeslib.as_array(memory).reshape(shape))
        return staging

    def _require_open(self) -> None:
        if not self._finalizer.alive:
            raise InvalidInputError(f"{self._path.name}: the engine is closed; open it again")


def version(library: str) -> str:
    """The version of one of the two libraries."""
    return library_version(library).rpartition(" ")[2]


def device_refusal(device: str, library: str) -> str | None:
    """Why a library cannot run an engine here, with what to do; None where it can. `device` is
    where the arrays lie: the engine computes on a GPU in either case."""
    return gpu_refusal() or library_refusal(library)


def _free(context: DeviceContext, resources: ExitStack) -> None:
    """Frees in the opposite order of making, all of it even if a call fails."""
    try:
        with context.current(), resources:
            context.call("cuCtxSynchronize")
    finally:
        context.release()


def _destroy_graphs(context: DeviceContext, graphs: dict[tuple[int, ...], Any]) -> None:
    while graphs:
        context.call("cuGraphExecDestroy", graphs.popitem()[1])
