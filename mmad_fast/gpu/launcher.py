"""Starts kernels compiled ahead of time, through the CUDA driver: needs neither torch nor triton.

    with Launcher("kernels") as launcher:
        launcher.launch("<kernel>", (blocks,), {"points": pointer, "N": 1024}, stream=stream)

The folder is what `mmad-fast kernels build` writes. The driver is reached through cuda-bindings
(extra `gpu`), which finds it when the first function is called.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.gpu.architectures import KIB, WARP_SIZE
from mmad_fast.gpu.device_context import Advice, DeviceContext
from mmad_fast.gpu.kernel_folder import (
    DIVISIBILITY,
    CompiledKernel,
    read_kernel_folder,
    split_type,
)

DEFAULT_SHARED_BYTES = 48 * KIB
"""The dynamic shared memory that a block gets without being asked for."""
GRID_LIMITS = (2**31 - 1, 65535, 65535)
SCALARS: dict[str, type[Any]] = {
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "fp32": ctypes.c_float,
}


ADVICE = Advice(
    purpose="launching kernels",
    install="pip install 'mmad-fast[gpu]'",
    instead="backend='cpu'",
    on_failure=", and build the kernels again where a cubin is refused: mmad-fast kernels build",
)


@dataclass(frozen=True)
class _Loaded:
    kernel: CompiledKernel
    module: Any
    function: Any


class Launcher:
    """The kernels of a folder on one device.

    Calls may come from any thread.

    Attributes:
        sm: The device's compute capability.
    """

    def __init__(self, path: Path | str, *, device: int = 0, driver: Any = None) -> None:
        """Opens a folder of kernels; the cubins are loaded at their first launch, or by `load`.

        Args:
            path: What `mmad-fast kernels build` wrote.
            device: The CUDA device's index.
            driver: Stands in for cuda.bindings.driver.

        Raises:
            InvalidInputError: `path` is no path.
            ArtifactError: the folder is damaged, or has no kernels for this device.
            MissingDependencyError: cuda-bindings is not installed.
            BackendUnavailableError: there is no driver or no such device.
            DriverError: the driver refused a call.
        """
        self._folder = read_kernel_folder(path)
        self._loaded: dict[tuple[str, str | None], _Loaded] = {}
        self._context = DeviceContext(device, ADVICE, driver=driver)
        self.sm = self._context.sm
        here = sorted({kernel.sm for kernel in self._folder.kernels})
        if self.sm not in here:
            raise ArtifactError(
                f"{path}: has no kernels for this device, which is sm_{self.sm}; it has "
                f"{', '.join(f'sm_{sm}' for sm in here) or 'none'}; build them with: "
                f"mmad-fast kernels build --sm {self.sm} --output {path}"
            )
        self._context.retain()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def kernels(self) -> tuple[CompiledKernel, ...]:
        """The kernels for this device."""
        return tuple(kernel for kernel in self._folder.kernels if kernel.sm == self.sm)

    def load(self, name: str, *, config: str | None = None) -> None:
        """Loads a kernel now, so that its first launch does not have to.

        Args:
            name: The kernel.
            config: The label of a configuration; None: the one that runs by default.

        Raises:
            InvalidInputError: no such kernel or configuration.
            ArtifactError: its cubin is missing or damaged.
            DriverError: the driver refused it.
        """
        self._load(name, config)

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        arguments: Mapping[str, Any],
        *,
        stream: int = 0,
        config: str | None = None,
    ) -> None:
        """Starts a kernel; does not wait for it.

        Args:
            name: The kernel.
            grid: Blocks in x, y and z; y and z may be left out.
            arguments: By name. A pointer is an integer, or an object with
                `__cuda_array_interface__` or an attribute `pointer`.
            stream: A CUstream as an integer.
            config: The label of a configuration; None: the one that runs by default.

        Raises:
            InvalidInputError: unknown kernel or argument, a missing argument, one that does not fit
                its type or breaks the promised alignment, or a grid out of range.
            ArtifactError: the cubin is missing or damaged.
            DriverError: the driver refused a call.
        """
        loaded = self._load(name, config)
        kernel = loaded.kernel
        blocks = _check_grid(kernel, grid)
        values = _pack(kernel, arguments)
        # An array of pointers to the values; the driver copies them before it returns.
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with self._context.current():
            self._context.call(
                "cuLaunchKernel",
                loaded.function,
                *blocks,
                *(kernel.num_warps * WARP_SIZE, 1, 1),
                kernel.shared_bytes,
                operator.index(stream),
                ctypes.addressof(addresses),
                0,
                doing=f"{name} on a grid of {blocks}",
            )

    def close(self) -> None:
        """Unloads the kernels; wait for what was launched before."""
        if not self._context.is_retained:
            return
        with self._context.current():
            while self._loaded:
                _, loaded = self._loaded.popitem()
                self._context.call("cuModuleUnload", loaded.module)
        self._context.release()

    def _load(self, name: str, config: str | None) -> _Loaded:
        loaded = self._loaded.get((name, config))
        if loaded is None:
            if not self._context.is_retained:
                raise InvalidInputError("the launcher is closed; open the folder again")
            loaded = self._load_module(self._find(name, config))
            self._loaded[name, config] = loaded
        return loaded

    def _find(self, name: str, config: str | None) -> CompiledKernel:
        of_name = [kernel for kernel in self.kernels if kernel.name == name]
        if not of_name:
            known = ", ".join(dict.fromkeys(kernel.name for kernel in self.kernels))
            raise InvalidInputError(f"there is no kernel {name!r}; known are {known}")
        for kernel in of_name:
            if kernel.is_default if config is None else kernel.config == config:
                return kernel
        known = ", ".join(kernel.config for kernel in of_name)
        raise InvalidInputError(
            f"{name}: has no configuration {config!r} here, only {known}; build all with: "
            f"mmad-fast kernels build --sm {self.sm} --all-configs"
        )

    def _load_module(self, kernel: CompiledKernel) -> _Loaded:
        driver = self._context.driver
        content = self._folder.cubin(kernel)
        with self._context.current():
            module = self._context.call("cuModuleLoadData", content, doing=kernel.file)
            function = self._context.call(
                "cuModuleGetFunction", module, kernel.entry.encode(), doing=kernel.file
            )
            if kernel.shared_bytes > DEFAULT_SHARED_BYTES:
                attributes = driver.CUfunction_attribute
                self._context.call(
                    "cuFuncSetAttribute",
                    function,
                    attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    kernel.shared_bytes,
                    doing=f"{kernel.name} with {kernel.shared_bytes} bytes of shared memory",
                )
        return _Loaded(kernel, module, function)


def _check_grid(kernel: CompiledKernel, grid: Sequence[int]) -> tuple[int, ...]:
    blocks = tuple(operator.index(size) for size in grid)
    is_allowed = 1 <= len(blocks) <= 3
    blocks += (1,) * (3 - len(blocks))
    if not is_allowed or not all(
        1 <= size <= limit for size, limit in zip(blocks, GRID_LIMITS, strict=True)
    ):
        raise InvalidInputError(
            f"{kernel.name}: the grid is {tuple(grid)}; it must be 1 to 3 sizes, from 1 to "
            f"{GRID_LIMITS}"
        )
    return blocks


def _pack(kernel: CompiledKernel, arguments: Mapping[str, Any]) -> list[Any]:
    """The kernel's parameters as C values, the hidden ones included."""
    names = [name for name, _ in kernel.arguments]
    if set(names) != set(arguments):
        missing = [name for name in names if name not in arguments]
        unknown = [name for name in arguments if name not in names]
        raise InvalidInputError(
            f"{kernel.name}: takes {', '.join(names)}; missing: {', '.join(missing) or 'none'}, "
            f"unknown: {', '.join(unknown) or 'none'}"
        )
    values = [_pack_one(kernel, name, kind, arguments[name]) for name, kind in kernel.arguments]
    return values + [ctypes.c_void_p(0) for _ in range(kernel.hidden_pointers)]


def _pack_one(kernel: CompiledKernel, name: str, argument: str, value: Any) -> Any:
    kind, is_divisible = split_type(argument)
    if kind.startswith("*"):
        packed = ctypes.c_uint64(_pointer(kernel, name, value))
    elif kind in SCALARS:
        packed = _scalar(kernel, name, kind, value)
    else:
        raise ArtifactError(
            f"{kernel.name}: {name} has type {kind}, this version knows pointers and "
            f"{', '.join(SCALARS)}; build the kernels again: mmad-fast kernels build"
        )
    if is_divisible and packed.value % DIVISIBILITY:
        raise InvalidInputError(
            f"{kernel.name}: {name} is {packed.value}; it must be a multiple of {DIVISIBILITY}: "
            "the kernel was compiled for it; take newly allocated arrays, and padded sizes"
        )
    return packed


def _scalar(kernel: CompiledKernel, name: str, kind: str, value: Any) -> Any:
    try:
        packed = SCALARS[kind](value if kind == "fp32" else operator.index(value))
    except TypeError:
        packed = None
    if packed is None or (kind != "fp32" and packed.value != value):
        raise InvalidInputError(f"{kernel.name}: {name} is {value!r}; it must be one {kind}")
    return packed


def _pointer(kernel: CompiledKernel, name: str, value: Any) -> int:
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        return int(interface["data"][0])
    try:
        address = operator.index(getattr(value, "pointer", value))
    except TypeError:
        address = -1
    if not 0 <= address < 2**64:
        raise InvalidInputError(
            f"{kernel.name}: {name} is {value!r}; it must be a device pointer: an "
            "integer, or an object with __cuda_array_interface__ or an attribute `pointer`"
        )
    return address
