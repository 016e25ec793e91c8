"""Which TensorRT library is here, and what the refusals say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mmad_fast.engines import tensorrt_library
from mmad_fast.engines.tensorrt_library import (
    LIBRARIES,
    gpu_name,
    gpu_refusal,
    gpu_sm,
    import_library,
    library_refusal,
    library_version,
)
from mmad_fast.errors import BackendUnavailableError, InvalidInputError


class Code(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100


class FakeDriver:
    """What is used of cuda.bindings.driver."""

    CUresult = Code
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )

    def __init__(self, *devices: int, code: Code = Code.CUDA_SUCCESS) -> None:
        self.devices, self.code = devices, code

    def cuInit(self, flags: int) -> tuple[Code]:
        return (self.code,)

    def cuDeviceGetCount(self) -> tuple[Code, int]:
        return Code.CUDA_SUCCESS, len(self.devices)

    def cuDeviceGet(self, index: int) -> tuple[Code, int]:
        return Code.CUDA_SUCCESS, index

    def cuDeviceGetName(self, length: int, device: int) -> tuple[Code, bytes]:
        return Code.CUDA_SUCCESS, f"GPU {self.devices[device]}".encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(self, name: str, device: int) -> tuple[Code, int]:
        major, minor = divmod(self.devices[device], 10)
        return Code.CUDA_SUCCESS, {"major": major, "minor": minor}[name]


def pretend(monkeypatch: pytest.MonkeyPatch, found: Mapping[str, Any]) -> None:
    """Makes these modules, or the errors of importing them, what is found; nothing else is."""

    def import_module(name: str) -> Any:
        if name not in found:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if isinstance(found[name], Exception):
            raise found[name]
        return found[name]

    monkeypatch.setattr(tensorrt_library, "import_module", import_module)


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_installed_library_is_imported_with_its_version(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("anything")
    module.__version__ = "10.14.1"  # type: ignore[attr-defined]
    pretend(monkeypatch, {LIBRARIES[name].module: module})
    assert library_refusal(name) is None
    assert import_library(name) is module
    assert library_version(name) == f"{name} 10.14.1"


@pytest.mark.parametrize(
    ("name", "machine", "words"),
    [
        ("tensorrt-rtx", "x86_64", ["TensorRT-RTX is not installed", "mmad-fast[tensorrt-rtx]"]),
        ("tensorrt", "x86_64", ["TensorRT is not installed", "pip install tensorrt"]),
        ("tensorrt", "aarch64", ["TensorRT is not installed", "JetPack", "python3-libnvinfer"]),
        ("tensorrt-rtx", "aarch64", ["glibc 2.35", "Jetson Orin: take tensorrt"]),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(
    name: str, machine: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_library.platform, "machine", lambda: machine)
    pretend(monkeypatch, {})
    reason = library_refusal(name)
    assert reason is not None
    assert all(word in reason for word in words)
    with pytest.raises(BackendUnavailableError, match="is not installed; install it"):
        import_library(name)


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs"),
        ImportError("libnvinfer.so.10: cannot open shared object file"),
        OSError("libnvinfer.so.10: cannot open shared object file"),
    ],
)
def test_a_library_that_does_not_load_says_why(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {"tensorrt": error})
    reason = library_refusal("tensorrt")
    assert reason is not None
    assert "is installed and does not load" in reason
    assert str(error) in reason


@pytest.mark.parametrize("name", ["tensorflow", "", None, ["tensorrt"]])
def test_an_unknown_library_is_answered_with_the_known_ones(name: Any) -> None:
    with pytest.raises(InvalidInputError, match="known are tensorrt-rtx, tensorrt"):
        import_library(name)


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (ImportError("libcudart"), "pip install cuda-bindings"),
        (FakeDriver(code=Code.CUDA_ERROR_NO_DEVICE), "CUDA_ERROR_NO_DEVICE"),
        (FakeDriver(), "there is no CUDA device"),
    ],
)
def test_the_reason_why_there_is_no_gpu(
    driver: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {"cuda.bindings.driver": driver})
    assert words in str(gpu_refusal())
    with pytest.raises(BackendUnavailableError, match=words):
        gpu_sm()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()

    def find_no_library(flags: int) -> tuple[Code]:
        raise RuntimeError('"cuda" is an NVIDIA driver library.')

    monkeypatch.setattr(driver, "cuInit", find_no_library)
    pretend(monkeypatch, {"cuda.bindings.driver": driver})
    assert "no NVIDIA driver here" in str(gpu_refusal())


def test_a_gpu_has_a_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"cuda.bindings.driver": FakeDriver(89, 120)})
    assert gpu_refusal() is None
    assert [gpu_sm(), gpu_sm(1)] == [89, 120]
    assert gpu_name(1) == "GPU 120"
    with pytest.raises(BackendUnavailableError, match="no CUDA device 2; there are 2"):
        gpu_sm(2)


def test_importing_it_imports_no_library() -> None:
    program = (
        "import sys, mmad_fast.engines.tensorrt_library; "
        "print(sorted(n for n in sys.modules if n.split('.')[0] in "
        "('tensorrt', 'tensorrt_rtx', 'cuda', 'onnx', 'torch')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
