"""The compiled CUDA module explains itself where there is no driver, and builds with older nvcc."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
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


OLDER_NVCC = """\
#!/bin/sh
for argument in "$@"; do
  case "$argument" in
    --list-gpu-arch) printf 'compute_%s\\n' {known}; exit;;
    *_100* | *_120*) echo "nvcc fatal : Unsupported gpu architecture" >&2; exit 1;;
  esac
done
exec {nvcc} "$@"
"""


@pytest.mark.parametrize(
    ("known", "codes"),
    [("70 75 80 86 89 90", ["75", "80", "86", "89", "90", "compute_90"]), ("70 75 80 86", [])],
)
def test_an_older_nvcc_builds_for_what_it_knows(
    known: str, codes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nothing, where it is too old."""
    monkeypatch.delenv("CUDAARCHS", raising=False)
    nvcc, cmake = shutil.which("nvcc"), shutil.which("cmake")
    pybind11 = pytest.importorskip("pybind11")
    if nvcc is None or cmake is None:
        pytest.skip("needs nvcc and cmake")
    older = tmp_path / "nvcc"
    older.write_text(OLDER_NVCC.format(known=known, nvcc=nvcc))
    older.chmod(0o755)
    options = {
        "CMAKE_CUDA_COMPILER": older,
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "MMAD_FAST_CUDA": "AUTO",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    command = [cmake, "-S", str(Path(__file__).parents[2]), "-B", str(tmp_path / "build")]
    command += [f"-D{name}={value}" for name, value in options.items()]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    commands = (tmp_path / "build" / "compile_commands.json").read_text()
    found = set(re.findall(r"[\[,](?:sm_)?((?:compute_)?\d+)(?=[\],])", commands))
    assert found == set(codes), commands
    assert ("older than CUDA 11.8" in said.stdout) == (not codes)
