"""Fixtures shared by all tests: a tiny detector artifact, a synthetic scan, the shared data."""

from __future__ import annotations

from gpu_test_device import TEST_DEVICE  # isort: skip  (before any triton)

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cuda_emulation import build as emulation
from numpy.typing import NDArray
from tiny_artifacts import GROUP_SIZE as GROUP_SIZE
from tiny_artifacts import NUM_GROUPS as NUM_GROUPS
from tiny_artifacts import POINT_DIM as POINT_DIM
from tiny_artifacts import RGB_DIM as RGB_DIM
from tiny_artifacts import RGB_SIZE as RGB_SIZE
from tiny_artifacts import TINY_PARAMETERS as TINY_PARAMETERS
from tiny_artifacts import TOKEN_GRID as TOKEN_GRID
from tiny_artifacts import make_arrays as make_arrays
from tiny_artifacts import write_tiny_cfm

FIT_HALF = (
    "torch",
    "triton",
    "timm",
    "onnx",
    "onnxscript",
    "sklearn",
    "scipy",
    "open3d",
    "typer",
    "matplotlib",
    "pandas",
)
"""Packages that loading and running a detector must do without."""


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The data that lies beside the repository; tests that need it skip where it is absent."""
    default = Path(__file__).parents[1] / ".." / "shared"
    folder = Path(os.environ.get("MMAD_FAST_SHARED", default)).resolve()
    if not (folder / "data").is_dir():
        pytest.skip("the shared data folder is not there (set MMAD_FAST_SHARED)")
    return folder


@pytest.fixture(scope="session")
def cuda_kernels() -> ModuleType:
    """csrc/cuda_bindings.cpp on the host, or on the GPU where that is the device of the tests."""
    if TEST_DEVICE == "cuda":
        from mmad_fast import _cuda_kernels

        return _cuda_kernels
    reason = emulation.refusal()
    if reason is not None:
        pytest.skip(reason)
    sanitize = os.environ.get("MMAD_FAST_EMULATION_SANITIZE") == "1"
    sources = emulation.kernel_sources()
    return emulation.load(emulation.build(emulation.KERNELS_MODULE, sources, sanitize=sanitize))


@pytest.fixture
def scan_arrays() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    return make_arrays()


@pytest.fixture
def pretend_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch tensors on TEST_DEVICE count as arrays on a CUDA device and all GPU backends run. Where
    that is the CPU, the CUDA kernels are the emulated ones; on a GPU nothing is pretended."""
    if TEST_DEVICE == "cuda":
        return
    from mmad_fast.gpu import cuda_kernels, device_arrays, dlpack

    emulated = request.getfixturevalue("cuda_kernels")
    types = device_arrays.DEVICE_TYPES | {dlpack.CPU}
    monkeypatch.setattr(device_arrays, "DEVICE_TYPES", types)
    monkeypatch.setattr(cuda_kernels, "kernels", lambda: emulated)
    for problem in ("_cuda_problem", "_torch_problem", "_triton_problem"):
        monkeypatch.setattr(cuda_kernels, problem, lambda: None)


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete CFM artifact of 2 MB, with hand-made graphs: no torch, no training."""
    return write_tiny_cfm(tmp_path_factory.mktemp("tiny") / "artifact", TINY_PARAMETERS)
