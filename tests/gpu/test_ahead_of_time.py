"""Compiling ahead of time: the folder of cubins, the same every time, and the refusals."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmad_fast.errors import ArtifactError, InvalidInputError, MissingDependencyError
from mmad_fast.gpu import ahead_of_time
from mmad_fast.gpu.ahead_of_time import CompileError, build_kernels, compile_jobs
from mmad_fast.gpu.kernel_folder import read_kernel_folder
from mmad_fast.gpu.launcher import Launcher

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
SCRATCH = ("gpu.scratch_kernel",)
NAME = "scratch.product.float16"


def build(output: Path, *, all_configs: bool = False) -> Path:
    return build_kernels(output, [89], modules=SCRATCH, all_configs=all_configs, processes=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("built") / "kernels", all_configs=True)


@needs_triton
def test_the_folder_holds_the_cubins_and_what_a_launch_needs(folder: Path) -> None:
    content = read_kernel_folder(folder)
    first, second = content.kernels
    assert (first.name, first.sm, first.entry) == (NAME, 89, "product")
    assert [kernel.is_default for kernel in content.kernels] == [True, False]
    assert first.file == f"sm_89/{NAME}.block_m64-block_n64-block_k64-w4-s3.cubin"
    assert first.constants == {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}
    assert list(first.arguments)[-2:] == [["K", "i32:16"], ["bias", "fp32"]]
    assert first.tensor_core_instruction == "mma.sync"
    assert min(first.registers, first.shared_bytes, first.wide_loads, second.registers) > 0
    assert first.spill_bytes == 0
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert files == {"manifest.json", first.file, second.file}
    for kernel in content.kernels:
        cubin = content.cubin(kernel)
        assert cubin.startswith(b"\x7fELF")
        assert hashlib.sha256(cubin).hexdigest() == content.files[kernel.file]["sha256"]
        assert str(Path(__file__).parent).encode() not in cubin


@needs_triton
def test_a_second_build_gives_the_same_bytes(folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    build(folder, all_configs=True)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["kernels"]


@needs_triton
def test_the_launcher_takes_what_was_built(folder: Path) -> None:
    fake_driver = pytest.importorskip("gpu.fake_driver", reason="cuda-bindings is missing")
    driver = fake_driver.FakeDriver()
    pointers = {"left": 0x1000, "right": 0x2000, "out": 0x3000}
    with Launcher(folder, driver=driver) as launcher:
        driver.layout = "<QQQiqifQQ"
        launcher.launch(NAME, (1,), {**pointers, "M": 1, "N": 2, "K": 16, "bias": 0.5})
    kernel = read_kernel_folder(folder).kernels[0]
    assert driver.of("load") == [("load", (folder / kernel.file).read_bytes())]
    assert driver.of("function") == [("function", "module", b"product")]
    assert kernel.hidden_pointers == 2


@needs_triton
def test_only_the_default_configuration_unless_all_are_asked_for() -> None:
    jobs = compile_jobs([89, 90], all_configs=False, modules=SCRATCH)
    assert [(job.sm, job.config) for job in jobs] == [
        (89, "block_m64-block_n64-block_k64-w4-s3"),
        (90, "block_m128-block_n64-block_k64-w4-s3"),
    ]
    assert len(compile_jobs([89, 90], all_configs=True, modules=SCRATCH)) == 3


@pytest.mark.parametrize("sms", [[88], [], [89, 12]])
def test_an_unknown_compute_capability_names_the_known(sms: list[int]) -> None:
    with pytest.raises(InvalidInputError, match=r"must be one or several of 75 \(T4, RTX 20\), 80"):
        compile_jobs(sms, modules=SCRATCH)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_of_time, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"need triton and torch.*mmad-fast\[gpu\]"):
        compile_jobs([89], modules=SCRATCH)


BROKEN = """
import triton, triton.language as tl
from mmad_fast.gpu.triton_kernels import DEFAULT_SM, LaunchConfig, TritonKernel

@triton.jit
def broken(out, B: tl.constexpr):
    tl.store(out + tl.arange(0, B), tl.zeros([B + B], tl.float32))

CONFIGS = {DEFAULT_SM: (LaunchConfig(4, 1, {"B": 64}),)}
KERNELS = (TritonKernel("scratch.broken", "broken", {"out": "*fp32"}, CONFIGS),)
"""


@needs_triton
def test_a_kernel_that_does_not_compile_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_kernel.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    output = tmp_path / "new" / "kernels"
    with pytest.raises(CompileError, match=r"scratch\.broken b64-w4-s1 sm_89: does not compile"):
        build_kernels(output, [89], modules=["broken_kernel"])
    assert not output.parent.exists()


@needs_triton
def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"other files than those of a folder of compiled"):
        build(tmp_path)
    with pytest.raises(ArtifactError, match=r"the folder of kernels cannot be written"):
        build(tmp_path / "notes.txt" / "kernels")
    mine = folder / "sm_89" / "mine.cubin"
    mine.write_text("mine")
    with pytest.raises(ArtifactError, match=r"sm_89/mine\.cubin"):
        build(folder)
    mine.unlink()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from mmad_fast.cli import main; main()"
    command = [sys.executable, "-c", program, "kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    done = run("build", "--sm", "88", "--output", str(tmp_path / "kernels"), "--json")
    assert done.returncode == 1
    assert "89 (RTX 40, L4, L40)" in json.loads(done.stdout)["error"]["message"]
    assert run("build", "--sm", "ada").returncode == 2
    assert re.search(r"Example: mmad-fast kernels build", run("build", "--help").stdout)
