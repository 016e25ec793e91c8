"""A stand-in for a GPU under TensorRT: cuda-bindings and the library, with one memory.

What is handed over to a stream is done when the stream is waited for, not before: who reads too
early finds NaN. Addresses are those of real memory, so that each side may read what it was given.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu.fake_driver import FakeDriver, real
from numpy.typing import NDArray

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra tensorrt-rtx) is missing")

VERSION = "1.7.1.116"
GOOD_ENGINE = b"an engine"
"""The content of a file that the fake library takes."""


def floats(address: int, size: int) -> NDArray[np.float32]:
    return np.frombuffer((ctypes.c_char * size).from_address(address), np.float32)


class FakeGpu(FakeDriver):
    """cuda.bindings.driver as far as engines use it; records the calls and does them."""

    CUstream_flags = real.CUstream_flags
    CUstreamCaptureMode = real.CUstreamCaptureMode

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Any] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.num_objects = 0x100
        self.shares = 0

    @property
    def is_empty(self) -> bool:
        """Everything was freed and given back."""
        return not (self.device or self.pinned or self.streams or self.graphs or self.shares)

    def names(self) -> list[str]:
        """What was called, without the arguments."""
        return [call[0] for call in self.calls]

    def forget(self) -> None:
        self.calls.clear()

    def hand_over(self, work: Callable[[], None], stream: int) -> None:
        assert self.current, "called outside the device's context"
        (self.queue if self.captured is None else self.captured).append(work)

    def _new(self) -> int:
        self.num_objects += 1
        return self.num_objects

    def _allocate(self, name: str, size: int, kind: dict[int, Any]) -> tuple[Any, ...]:
        self._record(name, size)
        memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(memory)
        floats(address, size)[:] = np.nan
        answer = self._answer(name, address)
        if answer[0] == self.CUresult.CUDA_SUCCESS:
            kind[address] = memory
        return answer

    def _free(self, name: str, handle: int, kind: dict[int, Any]) -> tuple[Any, ...]:
        self._record(name, handle)
        kind.pop(int(handle))
        return self._answer(name)

    def cuDevicePrimaryCtxRetain(self, dev: Any) -> tuple[Any, ...]:
        answer = super().cuDevicePrimaryCtxRetain(dev)
        self.shares += answer[0] == self.CUresult.CUDA_SUCCESS
        return answer

    def cuDevicePrimaryCtxRelease(self, dev: Any) -> tuple[Any, ...]:
        self.shares -= 1
        return super().cuDevicePrimaryCtxRelease(dev)

    def cuMemAlloc(self, bytesize: int) -> tuple[Any, ...]:
        return self._allocate("cuMemAlloc", bytesize, self.device)

    def cuMemFree(self, dptr: int) -> tuple[Any, ...]:
        return self._free("cuMemFree", dptr, self.device)

    def cuMemAllocHost(self, bytesize: int) -> tuple[Any, ...]:
        return self._allocate("cuMemAllocHost", bytesize, self.pinned)

    def cuMemFreeHost(self, p: int) -> tuple[Any, ...]:
        return self._free("cuMemFreeHost", p, self.pinned)

    def cuStreamCreate(self, Flags: int) -> tuple[Any, ...]:
        self._record("cuStreamCreate", Flags)
        answer = self._answer("cuStreamCreate", self._new())
        if answer[0] == self.CUresult.CUDA_SUCCESS:
            self.streams[answer[1]] = Flags
        return answer

    def cuStreamDestroy(self, hStream: int) -> tuple[Any, ...]:
        return self._free("cuStreamDestroy", hStream, self.streams)

    def _copy(
        self, name: str, to: tuple[int, Any], source: tuple[int, Any], size: int, stream: int
    ) -> tuple[Any, ...]:
        self._record(name, size, stream)
        for address, kind in (to, source):
            assert len(kind[address]) == size
        self.hand_over(lambda: ctypes.memmove(to[0], source[0], size) and None, stream)
        return self._answer(name)

    def cuMemcpyHtoDAsync(
        self, dstDevice: int, srcHost: int, ByteCount: int, hStream: int
    ) -> tuple[Any, ...]:
        to, source = (dstDevice, self.device), (srcHost, self.pinned)
        return self._copy("cuMemcpyHtoDAsync", to, source, ByteCount, hStream)

    def cuMemcpyDtoHAsync(
        self, dstHost: int, srcDevice: int, ByteCount: int, hStream: int
    ) -> tuple[Any, ...]:
        to, source = (dstHost, self.pinned), (srcDevice, self.device)
        return self._copy("cuMemcpyDtoHAsync", to, source, ByteCount, hStream)

    def finish(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def cuStreamSynchronize(self, hStream: int) -> tuple[Any, ...]:
        self._record("cuStreamSynchronize", hStream)
        self.finish()
        return self._answer("cuStreamSynchronize")

    def cuCtxSynchronize(self) -> tuple[Any, ...]:
        self._record("cuCtxSynchronize")
        self.finish()
        return self._answer("cuCtxSynchronize")

    def cuStreamBeginCapture(self, hStream: int, mode: Any) -> tuple[Any, ...]:
        assert mode == self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        assert self.captured is None
        self._record("cuStreamBeginCapture", hStream)
        answer = self._answer("cuStreamBeginCapture")
        if answer[0] == self.CUresult.CUDA_SUCCESS:
            self.captured = []
        return answer

    def cuStreamEndCapture(self, hStream: int) -> tuple[Any, ...]:
        assert self.captured is not None
        self._record("cuStreamEndCapture", hStream)
        captured, self.captured = self.captured, None
        answer = self._answer("cuStreamEndCapture", self._new())
        if answer[0] == self.CUresult.CUDA_SUCCESS:
            self.graphs[answer[1]] = captured
        return answer

    def cuGraphInstantiate(self, hGraph: int, flags: int) -> tuple[Any, ...]:
        self._record("cuGraphInstantiate", flags)
        answer = self._answer("cuGraphInstantiate", self._new())
        if answer[0] == self.CUresult.CUDA_SUCCESS:
            self.graphs[answer[1]] = list(self.graphs[hGraph])
        return answer

    def cuGraphLaunch(self, hGraphExec: int, hStream: int) -> tuple[Any, ...]:
        self._record("cuGraphLaunch", hStream)
        self.queue.extend(self.graphs[hGraphExec])
        return self._answer("cuGraphLaunch")

    def cuGraphDestroy(self, hGraph: int) -> tuple[Any, ...]:
        return self._free("cuGraphDestroy", hGraph, self.graphs)

    def cuGraphExecDestroy(self, hGraphExec: int) -> tuple[Any, ...]:
        return self._free("cuGraphExecDestroy", hGraphExec, self.graphs)


class Part:
    """An object of the library: says when it is made and when it goes, which must be in the
    device's context."""

    def __init__(self, library: FakeLibrary, name: str) -> None:
        self.library = library
        self.name = name
        library.gpu._record(f"make {name}")

    def __del__(self) -> None:
        self.library.gpu._record(f"drop {self.name}")


class FakeLibrary:
    """tensorrt_rtx as far as engines use it: y (.., 48) = 2 x (.., 48) and z = y + 1."""

    __version__ = VERSION
    ILogger = trt.ILogger
    DataType = trt.DataType
    TensorIOMode = trt.TensorIOMode
    EngineInvalidityDiagnostics = trt.EngineInvalidityDiagnostics
    DynamicShapesKernelSpecializationStrategy = trt.DynamicShapesKernelSpecializationStrategy

    def __init__(self, gpu: FakeGpu, *, rows: int = 5, **settings: Any) -> None:
        self.gpu = gpu
        self.shapes = dict.fromkeys("xyz", (rows, 48))
        self.dtypes = dict.fromkeys("xyz", trt.DataType.FLOAT)
        self.smallest = 1
        self.refused: set[str] = set()
        self.complaint = ""
        self.invalidity = trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC
        self.compiled = b""
        self.taken_kernels: list[bytes] = []
        self.specialization: Any = None
        self.has_config = False
        vars(self).update(settings)

    def allows(self, what: str) -> bool:
        if what in self.refused:
            self.log.log(trt.ILogger.Severity.ERROR, self.complaint or f"no {what} today")
        return what not in self.refused

    def Runtime(self, logger: Any) -> FakeRuntime:
        self.log = logger
        if not self.allows("runtime"):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return FakeRuntime(self, "runtime")


class FakeRuntime(Part):
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        if not self.library.allows("deserialize") or serialized_engine != GOOD_ENGINE:
            return None
        return FakeEngine(self.library, "engine")

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        return trt.EngineValidity.INVALID, int(self.library.invalidity)


class FakeEngine(Part):
    @property
    def num_io_tensors(self) -> int:
        return 3

    def get_tensor_name(self, index: int) -> str:
        return "yxz"[index]

    def get_tensor_mode(self, name: str) -> Any:
        return trt.TensorIOMode.INPUT if name == "x" else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.library.dtypes[name]

    def get_tensor_shape(self, name: str) -> Any:
        return trt.Dims(self.library.shapes[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        return [trt.Dims((size, 48)) for size in (self.library.smallest, 8, 8)]

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self.library, "config")

    def create_execution_context(self, runtime_config: Any = None) -> FakeExecution | None:
        self.library.has_config = runtime_config is not None
        if not self.library.allows("context"):
            return None
        return FakeExecution(self.library, "context")


class FakeConfig(Part):
    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> Any:
        return self.library.specialization

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy: Any) -> None:
        self.library.specialization = strategy

    def create_runtime_cache(self) -> FakeKernels:
        return FakeKernels(self.library, "kernels")

    def set_runtime_cache(self, cache: Any = None) -> bool:
        assert isinstance(cache, FakeKernels)
        return True


class FakeKernels(Part):
    def deserialize(self, blob: bytes) -> bool:
        self.library.taken_kernels.append(blob)
        return self.library.allows("kernels")

    def serialize(self) -> bytes:
        return self.library.compiled


class FakeExecution(Part):
    def __init__(self, library: FakeLibrary, name: str) -> None:
        super().__init__(library, name)
        self.addresses: dict[str, int] = {}
        self.batch = library.shapes["x"][0]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "x"
        self.batch = shape[0]
        return self.library.smallest <= self.batch

    def get_tensor_shape(self, name: str) -> Any:
        return trt.Dims((self.batch, *self.library.shapes[name][1:]))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return self.library.allows("address")

    def is_stream_capturable(self, stream: int) -> bool:
        return self.library.allows("capture")

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu = self.library.gpu
        gpu._record("execute", stream_handle)
        if not self.library.allows("execute"):
            return False
        if gpu.captured is not None and not self.library.allows("execute in a capture"):
            return False
        at = SimpleNamespace(**self.addresses)
        size = 4 * self.batch * 48

        def compute() -> None:
            floats(at.y, size)[:] = 2 * floats(at.x, size)
            floats(at.z, size)[:] = floats(at.y, size) + 1

        gpu.hand_over(compute, stream_handle)
        return True
