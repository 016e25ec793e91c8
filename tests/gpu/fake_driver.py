"""A stand-in for cuda.bindings.driver, and the kernel that its tests launch."""

from __future__ import annotations

import ctypes
import inspect
import re
import struct
import textwrap
from typing import Any

import pytest

from mmad_fast.gpu.kernel_folder import CompiledKernel

real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings (extra gpu) is missing")

ARGUMENTS = [["left", "*fp16:16"], ["out", "*fp32"], ["M", "i32"], ["N", "i64"], ["K", "i32:16"]]
ARGUMENTS += [["bias", "fp32"]]
LAYOUT = "<QQiqifQQ"
"""How struct packs them, with two hidden pointers."""
VALUES = {"left": 0x7F0000000010, "out": 0x7F0000000004, "M": -7, "N": 2**40, "K": 384}
VALUES |= {"bias": 0.25}


def make_kernel(**changes: Any) -> CompiledKernel:
    record = {
        "name": "scratch.product",
        "config": "m64-w4-s3",
        "is_default": True,
        "sm": 89,
        "entry": "product",
        "constants": {"BLOCK_M": 64},
        "num_warps": 4,
        "num_stages": 3,
        "shared_bytes": 1024,
        "arguments": ARGUMENTS,
        "hidden_pointers": 2,
        "registers": 64,
        "spill_bytes": 0,
        "tensor_core_instruction": "mma.sync",
        "wide_loads": 8,
        "ptxas": "12.9.86",
    }
    return CompiledKernel(**{**record, **changes})


def num_returned(name: str) -> int:
    """How many values a function of the real module returns behind its code, as documented."""
    documented = re.split(r"Returns\n *-------\n", inspect.getdoc(getattr(real, name)))[1]
    returned = textwrap.dedent(re.split("See Also|Notes", documented)[0])
    names = re.findall(r"^(\w+)(?: : .*)?$", returned, re.MULTILINE)
    assert names[0] == "CUresult"
    return len(names) - 1


class FakeDriver:
    """cuda.bindings.driver as far as the launcher uses it; records the calls."""

    CUresult = real.CUresult
    CUdevice_attribute = real.CUdevice_attribute
    CUfunction_attribute = real.CUfunction_attribute

    def __init__(self, sm: int = 89, devices: int = 1, **codes: Any) -> None:
        self.sm, self.devices, self.codes = sm, devices, codes
        self.calls: list[tuple[Any, ...]] = []
        self.current: list[Any] = []
        self.layout = LAYOUT
        self.parameters = b""

    def _answer(self, name: str, *values: Any) -> tuple[Any, ...]:
        assert len(values) == num_returned(name)
        code = self.codes.get(name, self.CUresult.CUDA_SUCCESS)
        return (code, *values)

    def cuInit(self, Flags: int) -> tuple[Any, ...]:
        return self._answer("cuInit")

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return self._answer("cuDeviceGetCount", self.devices)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return self._answer("cuDeviceGet", f"device {ordinal}")

    def cuDeviceGetAttribute(self, attrib: Any, dev: Any) -> tuple[Any, ...]:
        names = self.CUdevice_attribute
        values = {
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: self.sm // 10,
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: self.sm % 10,
        }
        return self._answer("cuDeviceGetAttribute", values[attrib])

    def cuDevicePrimaryCtxRetain(self, dev: Any) -> tuple[Any, ...]:
        self.calls.append(("retain", dev))
        return self._answer("cuDevicePrimaryCtxRetain", f"context of {dev}")

    def cuDevicePrimaryCtxRelease(self, dev: Any) -> tuple[Any, ...]:
        self.calls.append(("release", dev))
        return self._answer("cuDevicePrimaryCtxRelease")

    def cuCtxPushCurrent(self, ctx: Any) -> tuple[Any, ...]:
        self.current.append(ctx)
        return self._answer("cuCtxPushCurrent")

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        return self._answer("cuCtxPopCurrent", self.current.pop())

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        self._record("load", image)
        return self._answer("cuModuleLoadData", "module")

    def cuModuleGetFunction(self, hmod: Any, name: bytes) -> tuple[Any, ...]:
        assert isinstance(name, bytes)
        self._record("function", hmod, name)
        return self._answer("cuModuleGetFunction", "function")

    def cuFuncSetAttribute(self, hfunc: Any, attrib: Any, value: int) -> tuple[Any, ...]:
        self._record("attribute", hfunc, attrib, value)
        return self._answer("cuFuncSetAttribute")

    def cuModuleUnload(self, hmod: Any) -> tuple[Any, ...]:
        self._record("unload", hmod)
        return self._answer("cuModuleUnload")

    def cuLaunchKernel(
        self,
        f: Any,
        gridDimX: int,
        gridDimY: int,
        gridDimZ: int,
        blockDimX: int,
        blockDimY: int,
        blockDimZ: int,
        sharedMemBytes: int,
        hStream: Any,
        kernelParams: int,
        extra: int,
    ) -> tuple[Any, ...]:
        grid, block = (gridDimX, gridDimY, gridDimZ), (blockDimX, blockDimY, blockDimZ)
        self._record("launch", f, grid, block, sharedMemBytes, hStream, extra)
        codes = self.layout.lstrip("<")
        addresses = (ctypes.c_void_p * len(codes)).from_address(kernelParams)
        self.parameters = b"".join(
            ctypes.string_at(address, struct.calcsize(code))
            for address, code in zip(addresses, codes, strict=True)
        )
        return self._answer("cuLaunchKernel")

    def cuGetErrorName(self, error: Any) -> tuple[Any, ...]:
        return (self.CUresult.CUDA_SUCCESS, error.name.encode())

    def cuGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return (self.CUresult.CUDA_SUCCESS, b"in the driver's words")

    def _record(self, *call: Any) -> None:
        assert self.current == ["context of device 0"], "called outside the device's context"
        self.calls.append(call)

    def of(self, what: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == what]
