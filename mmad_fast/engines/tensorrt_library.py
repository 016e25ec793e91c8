"""The two TensorRT libraries: which is installed, what it can build for, and the GPU at hand.

TensorRT-RTX and TensorRT have the same API under two names. Nothing is imported before it is asked
for; the GPU is asked through cuda-bindings.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.gpu.device_context import compute_capability

ARM = ("aarch64", "arm64")


@dataclass(frozen=True)
class TensorRtLibrary:
    """One of the two libraries.

    Attributes:
        name: As targets and engines call it.
        title: As its owner calls it.
        module: What is imported.
        install: The command that installs it on an x86-64 machine.
        install_arm: What to do on a 64-bit Arm machine, e.g. a Jetson.
        sms: The compute capabilities it builds for without a GPU; None: it builds for the GPU at
            hand only.
        oldest_sm: By precision, the oldest compute capability that can run it.
    """

    name: str
    title: str
    module: str
    install: str
    install_arm: str
    sms: tuple[int, ...] | None
    oldest_sm: Mapping[str, int]


LIBRARIES: dict[str, TensorRtLibrary] = {
    library.name: library
    for library in (
        TensorRtLibrary(
            "tensorrt-rtx",
            "TensorRT-RTX",
            "tensorrt_rtx",
            "pip install 'mmad-fast[tensorrt-rtx]'",
            "pip install tensorrt-rtx-cu13 cuda-bindings (it has wheels for glibc 2.35 and newer, "
            "and does not serve a Jetson Orin: take tensorrt there)",
            (75, 80, 86, 89, 120, 121),
            # Found by building; it has no float32 products for Turing.
            {"fp32": 80, "fp16": 75, "bf16": 80, "int8": 75, "fp8": 89},
        ),
        TensorRtLibrary(
            "tensorrt",
            "TensorRT",
            "tensorrt",
            "pip install tensorrt cuda-bindings (for a CUDA 12 driver: tensorrt-cu12)",
            "on a Jetson it comes with JetPack: sudo apt install python3-libnvinfer, and make the "
            "virtual environment with --system-site-packages; on other Arm machines: pip install "
            "tensorrt; on both: pip install cuda-bindings",
            None,
            {"fp32": 75, "fp16": 75, "bf16": 80, "int8": 75, "fp8": 89},
        ),
    )
}
"""The libraries by name."""


def check_library(name: str) -> TensorRtLibrary:
    """The library of that name.

    Raises:
        InvalidInputError: there is none.
    """
    if not isinstance(name, str) or name not in LIBRARIES:
        raise InvalidInputError(
            f"there is no TensorRT library {name!r}; known are {', '.join(LIBRARIES)}"
        )
    return LIBRARIES[name]


def library_refusal(name: str) -> str | None:
    """Why a library cannot be used here, with the command that installs it; None where it can."""
    return _load(check_library(name))[1]


def import_library(name: str) -> ModuleType:
    """The library's Python module.

    Raises:
        InvalidInputError: no such library.
        BackendUnavailableError: it is not installed; the message has the command that installs it.
    """
    module, reason = _load(check_library(name))
    if module is None:
        raise BackendUnavailableError(reason)
    return module


def library_version(name: str) -> str:
    """The library with its version, e.g. "tensorrt-rtx 1.7.1.116".

    Raises:
        InvalidInputError: no such library.
        BackendUnavailableError: it is not installed.
    """
    return f"{name} {import_library(name).__version__}"


def _load(library: TensorRtLibrary) -> tuple[ModuleType | None, str | None]:
    """(the module, None), or (None, why not)."""
    is_arm = platform.machine().lower() in ARM
    install = library.install_arm if is_arm else library.install
    try:
        return import_module(library.module), None
    except ModuleNotFoundError as error:
        if error.name == library.module:
            return None, f"{library.title} is not installed; install it: {install}"
        problem: Exception = error
    except (ImportError, OSError, RuntimeError) as error:
        # Its __init__ opens the C++ libraries by itself, and raises what dlopen says.
        problem = error
    return None, f"{library.title} is installed and does not load ({problem}); reinstall: {install}"


def gpu_refusal() -> str | None:
    """Why no NVIDIA GPU can be used here, with what to do; None where one can."""
    return _start_driver()[1]


def gpu_sm(device_index: int = 0) -> int:
    """The compute capability of a GPU, e.g. 89 for 8.9.

    Args:
        device_index: Which CUDA device.

    Raises:
        BackendUnavailableError: no GPU can be used here, or there is none of that index.
    """
    driver, device = _device(device_index)
    return compute_capability(
        driver, lambda name: int(driver.cuDeviceGetAttribute(name, device)[1])
    )


def gpu_name(device_index: int = 0) -> str:
    """The name of a GPU, as its driver calls it.

    Args:
        device_index: Which CUDA device.

    Raises:
        BackendUnavailableError: no GPU can be used here, or there is none of that index.
    """
    driver, device = _device(device_index)
    name: bytes = driver.cuDeviceGetName(256, device)[1]
    return name.decode(errors="replace").rstrip("\0 ")


def _device(device_index: int) -> tuple[Any, Any]:
    """(cuda.bindings.driver, started, the device)."""
    driver, reason = _start_driver()
    if driver is None:
        raise BackendUnavailableError(reason)
    count = driver.cuDeviceGetCount()[1]
    if not 0 <= device_index < count:
        raise BackendUnavailableError(f"there is no CUDA device {device_index}; there are {count}")
    return driver, driver.cuDeviceGet(device_index)[1]


def _start_driver() -> tuple[Any, str | None]:
    """(cuda.bindings.driver, started, None), or (None, why not)."""
    try:
        driver: Any = import_module("cuda.bindings.driver")
    except (ImportError, OSError, RuntimeError) as error:
        return None, (
            f"cuda-bindings does not load ({error}); install it: pip install cuda-bindings"
        )
    try:
        (code,) = driver.cuInit(0)
    except RuntimeError as error:  # it finds no libcuda
        return None, (
            f"there is no NVIDIA driver here ({str(error).rstrip('.')}); install it, and start a "
            "container with: --gpus all"
        )
    if code != driver.CUresult.CUDA_SUCCESS:
        name = getattr(code, "name", code)
        return None, (
            f"the NVIDIA driver finds no GPU to use ({name}); check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES"
        )
    if driver.cuDeviceGetCount()[1] < 1:
        return None, "there is no CUDA device; check CUDA_VISIBLE_DEVICES and nvidia-smi"
    return driver, None
