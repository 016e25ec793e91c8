"""The launcher: what reaches the driver, byte for byte, and what it says when it is refused."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpu.fake_driver import LAYOUT, VALUES, FakeDriver, make_kernel, real

from mmad_fast.errors import (
    ArtifactError,
    BackendUnavailableError,
    InvalidInputError,
    MissingDependencyError,
)
from mmad_fast.gpu.device_context import DriverError
from mmad_fast.gpu.kernel_folder import read_kernel_folder, write_kernel_folder
from mmad_fast.gpu.launcher import Launcher

FAKED = [name for name in vars(FakeDriver) if name.startswith("cu")]


@pytest.mark.parametrize("name", FAKED)
def test_the_fake_takes_what_the_real_driver_does(name: str) -> None:
    wanted = list(inspect.signature(getattr(real, name)).parameters)
    assert list(inspect.signature(getattr(FakeDriver, name)).parameters)[1:] == wanted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cubins = [
        (make_kernel(), b"cubin 89"),
        (make_kernel(config="m128-w8-s3", is_default=False, num_warps=8), b"cubin 89 wide"),
        (make_kernel(name="scratch.large", shared_bytes=49153), b"cubin large"),
        (make_kernel(sm=120), b"cubin 120"),
    ]
    return write_kernel_folder(tmp_path / "kernels", triton="3.8.0", cubins=cubins)


def test_a_launch_reaches_the_driver_as_it_was_asked_for(folder: Path) -> None:
    driver = FakeDriver()
    with Launcher(folder, driver=driver) as launcher:
        launcher.launch("scratch.product", (5, 3), VALUES, stream=0xABC)
        launcher.launch("scratch.product", (5,), VALUES, stream=0xABC)
        assert driver.of("load") == [("load", b"cubin 89")]
        assert driver.of("function") == [("function", "module", b"product")]
        assert driver.of("launch") == [
            ("launch", "function", (5, 3, 1), (128, 1, 1), 1024, 0xABC, 0),
            ("launch", "function", (5, 1, 1), (128, 1, 1), 1024, 0xABC, 0),
        ]
        assert driver.of("attribute") == []
        assert driver.of("unload") == []
    assert driver.parameters == struct.pack(LAYOUT, *VALUES.values(), 0, 0)
    assert driver.calls[-2:] == [("unload", "module"), ("release", "device 0")]
    assert driver.current == []


def test_the_cubin_of_the_device_and_the_configuration_is_taken(folder: Path) -> None:
    driver = FakeDriver(sm=120)
    with Launcher(folder, driver=driver) as launcher:
        assert [kernel.sm for kernel in launcher.kernels] == [120]
        launcher.load("scratch.product")
    assert driver.of("load") == [("load", b"cubin 120")]
    driver = FakeDriver()
    with Launcher(folder, driver=driver) as launcher:
        launcher.launch("scratch.product", (1,), VALUES, config="m128-w8-s3")
    assert driver.of("load") == [("load", b"cubin 89 wide")]
    assert driver.of("launch")[0][3] == (256, 1, 1)


def test_more_than_48_kib_of_shared_memory_are_asked_for(folder: Path) -> None:
    driver = FakeDriver()
    with Launcher(folder, driver=driver) as launcher:
        launcher.launch("scratch.large", (1,), VALUES)
    attribute = real.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert driver.of("attribute") == [("attribute", "function", attribute, 49153)]


def test_arrays_are_taken_by_their_pointers(folder: Path) -> None:
    driver = FakeDriver()
    array = SimpleNamespace(__cuda_array_interface__={"data": (VALUES["left"], False)})
    record = SimpleNamespace(pointer=VALUES["out"])
    with Launcher(folder, driver=driver) as launcher:
        launcher.launch("scratch.product", (1,), {**VALUES, "left": array, "out": record})
    assert driver.parameters == struct.pack(LAYOUT, *VALUES.values(), 0, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"left": 0x1008}, "left is 4104; it must be a multiple of 16"),
        ({"K": 40}, "K is 40; it must be a multiple of 16"),
        ({"M": 2**31}, "M is 2147483648; it must be one i32"),
        ({"M": 1.5}, "M is 1.5; it must be one i32"),
        ({"bias": "a"}, "bias is 'a'; it must be one fp32"),
        ({"out": 1.0}, "out is 1.0; it must be a device pointer"),
        ({"out": -1}, "out is -1; it must be a device pointer"),
        ({"more": 1}, "missing: none, unknown: more"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(folder: Path, changes: dict, words: str) -> None:
    driver = FakeDriver()
    with (
        Launcher(folder, driver=driver) as launcher,
        pytest.raises(InvalidInputError, match=re.escape(words)),
    ):
        launcher.launch("scratch.product", (1,), {**VALUES, **changes})
    assert driver.of("launch") == []


def test_a_missing_argument_is_named(folder: Path) -> None:
    with (
        Launcher(folder, driver=FakeDriver()) as launcher,
        pytest.raises(InvalidInputError, match="missing: left, out, M, N, K, bias"),
    ):
        launcher.launch("scratch.product", (1,), {})


@pytest.mark.parametrize("grid", [(), (0,), (1, 65536), (1, 1, 1, 1), (-1,)])
def test_a_grid_out_of_range_is_refused(folder: Path, grid: tuple) -> None:
    with (
        Launcher(folder, driver=FakeDriver()) as launcher,
        pytest.raises(InvalidInputError, match="the grid is .*must be 1 to 3 sizes"),
    ):
        launcher.launch("scratch.product", grid, VALUES)


def test_unknown_names_are_answered_with_the_known_ones(folder: Path) -> None:
    with Launcher(folder, driver=FakeDriver()) as launcher:
        with pytest.raises(InvalidInputError, match=r"known are scratch\.product, scratch\.large"):
            launcher.launch("product", (1,), VALUES)
        with pytest.raises(InvalidInputError, match=r"only m64-w4-s3, m128-w8-s3; .*--all-configs"):
            launcher.load("scratch.product", config="m1")


def test_a_device_without_kernels_names_those_there_and_the_command(folder: Path) -> None:
    words = r"this device, which is sm_86; it has sm_89, sm_120; build .*kernels build --sm 86"
    with pytest.raises(ArtifactError, match=words):
        Launcher(folder, driver=FakeDriver(sm=86))


def test_a_damaged_cubin_does_not_reach_the_driver(folder: Path) -> None:
    driver = FakeDriver()
    (folder / make_kernel().file).write_bytes(b"cubin 8X")
    with (
        Launcher(folder, driver=driver) as launcher,
        pytest.raises(ArtifactError, match=r"cubin has been changed .*mmad-fast kernels build"),
    ):
        launcher.launch("scratch.product", (1,), VALUES)
    assert driver.of("load") == []


def test_a_cubin_of_kernels_that_were_built_again_does_not_reach_the_driver(folder: Path) -> None:
    content = read_kernel_folder(folder)
    kernel, other = content.kernels[:2]
    before, others = content.cubin(kernel), content.cubin(other)
    cubins = [(one, content.cubin(one)) for one in content.kernels[1:]]
    write_kernel_folder(folder, triton="3.9.0", cubins=[(kernel, before + b"!"), *cubins])
    with pytest.raises(ArtifactError, match="was replaced since it was loaded; load it again"):
        content.cubin(kernel)
    assert content.cubin(other) == others
    assert read_kernel_folder(folder).cubin(kernel) == before + b"!"


def test_without_a_driver_or_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(self: FakeDriver, Flags: int) -> tuple[Any, ...]:
        raise RuntimeError("libcuda.so.1 is not there")  # as the real module does

    error = real.CUresult.CUDA_ERROR_NO_DEVICE
    cases = [
        (FakeDriver(cuInit=error), "does not start: CUDA_ERROR_NO_DEVICE: in the driver's words"),
        (FakeDriver(devices=0), "no CUDA device 0: the driver has 0"),
    ]
    for driver, words in cases:
        with pytest.raises(BackendUnavailableError, match=f"{words}; install NVIDIA's driver"):
            Launcher(folder, driver=driver)
    monkeypatch.setattr(FakeDriver, "cuInit", not_found)
    with pytest.raises(BackendUnavailableError, match="no CUDA driver: libcuda.so.1 is not there;"):
        Launcher(folder, driver=FakeDriver())


@pytest.mark.parametrize(
    "name",
    ["cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel", "cuDevicePrimaryCtxRetain"],
)
def test_what_the_driver_refuses_is_said_in_its_words(folder: Path, name: str) -> None:
    driver = FakeDriver(**{name: real.CUresult.CUDA_ERROR_OUT_OF_MEMORY})
    words = rf"{name} failed.*: CUDA_ERROR_OUT_OF_MEMORY: in the driver's words; check with"
    with pytest.raises(DriverError, match=words):
        Launcher(folder, driver=driver).launch("scratch.product", (1,), VALUES)
    assert driver.current == []


def test_a_closed_launcher_starts_nothing(folder: Path) -> None:
    driver = FakeDriver()
    launcher = Launcher(folder, driver=driver)
    launcher.close()
    launcher.close()
    assert driver.calls == [("retain", "device 0"), ("release", "device 0")]
    with pytest.raises(InvalidInputError, match="the launcher is closed"):
        launcher.launch("scratch.product", (1,), VALUES)


def test_cuda_bindings_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mmad-fast\[gpu\]'"):
        Launcher(folder)


PROGRAM = """
import sys
from gpu.fake_driver import VALUES
from mmad_fast.gpu.launcher import Launcher
with Launcher(sys.argv[1]) as launcher:
    launcher.launch("scratch.large", (5, 3), VALUES, stream=0xabc)
print(sorted({"torch", "triton"} & set(sys.modules)))
"""


def test_the_real_bindings_take_what_the_launcher_gives(folder: Path, tmp_path: Path) -> None:
    """In place of libcuda.so.1 stands a library that prints how its functions are called."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to make the stand-in for libcuda.so.1")
    source = Path(__file__).parent / "fake_libcuda.cpp"
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": tests}
    command = [sys.executable, "-c", PROGRAM, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "load cubin large",
        "function product of 0x30",
        "attribute 8 of 0x40 is 49153",
        "launch 0x40 grid 5 3 1 block 128 1 1 shared 49153 stream 0xabc",
        struct.pack(LAYOUT, *VALUES.values(), 0, 0).hex(),
        "unload 0x30",
        "release 0",
        "[]",
    ]
