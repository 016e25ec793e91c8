"""The compiled CUDA module explains itself where there is no driver."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def module() -> ModuleType:
    if importlib.util.find_spec("mmad_fast._cuda_kernels") is None:
        pytest.skip("mmad_fast was built without nvcc: MMAD_FAST_CUDA=ON pip install .")
    return importlib.import_module("mmad_fast._cuda_kernels")


def test_the_kernels_are_bound(module: ModuleType) -> None:
    assert "indices" in (module.inverse_distance_weights.__doc__ or "")


def test_without_a_device_it_says_what_is_missing(module: ModuleType) -> None:
    problem = module.driver_problem()
    if module.device_count() > 0:
        assert problem is None
        assert module.compute_capability(0) >= 75
        return
    assert any(word in problem for word in ("NVIDIA driver", "CUDA does not start"))
    assert any(advice in problem for advice in ("install a driver", "update the driver", "check"))
    with pytest.raises(RuntimeError, match=r"csrc/common/cuda_device.cu:\d+: cuda\w+\(.*\): \w+"):
        module.allocate(0, 16, 0)


@pytest.mark.own_process
def test_it_needs_neither_torch_nor_the_cpu_kernels(module: ModuleType) -> None:
    words = "import sys, mmad_fast._cuda_kernels; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", words], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"torch", "triton", "cuda", "mmad_fast._kernels"} & set(loaded)
