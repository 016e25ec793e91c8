"""Every GPU kernel, in every configuration, compiled for every architecture; no GPU takes part.

The first run compiles for minutes; Triton's and nvcc's results are kept in the user's cache.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from gpu.resources_page import difference
from pages import load_pages
from rendering import resources

from mmad_fast.gpu.ahead_of_time import CompileJob, Outcome, compile_all, compile_jobs, kernels_of
from mmad_fast.gpu.architectures import ARCHITECTURES
from mmad_fast.gpu.triton_kernels import TRITON_MODULES, TritonKernel
from mmad_fast.measure.cuda_resources import (
    FLAGS,
    LAUNCHES,
    CudaKernel,
    find_nvcc,
    measure_cuda,
)

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
HAS_TRITON = all(find_spec(name) is not None for name in ("triton", "torch"))
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton or torch is not installed")
needs_nvcc = pytest.mark.skipif(
    find_nvcc() is None, reason="no nvcc: not in CUDACXX, on the PATH, or installed with pip"
)

NARROW = {
    "inverse_distance_interpolation.weights.*": "a point is three floats",
    "inverse_distance_interpolation.pooled_rows.*": "gathers single values",
    "*.c1": "rows of any length begin anywhere",
}
"""Kernels without loads of 16 bytes, and why they cannot have them."""


@dataclass(frozen=True)
class Budget:
    """What a CUDA kernel may take on any architecture.

    Attributes:
        registers: At most.
        occupancy: At least.
    """

    registers: int
    occupancy: float


BUDGETS = {
    # One block works alone, on as many registers as its threads may have.
    "sample_in_registers<2>": Budget(40, 0.25),
    "sample_in_registers<4>": Budget(48, 0.25),
    "sample_in_registers<8>": Budget(64, 0.25),
    "sample_leaves<1>": Budget(64, 0.5),
    "sample_leaves<8>": Budget(128, 0.25),
    "three_nearest_centers": Budget(40, 0.75),
    "find_boxes": Budget(32, 1.0),
    "find_neighbors": Budget(56, 0.5),
    "list_neighbors": Budget(56, 0.5),
    # float64 takes two registers a number.
    "fit_normals<float>": Budget(64, 0.5),
    "fit_normals<double>": Budget(64, 0.5),
    "count_pairs<float>": Budget(64, 0.5),
    "count_pairs<double>": Budget(64, 0.5),
    "weigh_histograms": Budget(40, 0.65),
    "write_weights": Budget(48, 0.75),
    "measure_distances": Budget(48, 0.75),
    "combine_rows": Budget(48, 1.0),
    "add_columns": Budget(48, 1.0),
}


def _jobs() -> list[CompileJob]:
    return compile_jobs(ARCHITECTURES) if HAS_TRITON else []


@cache
def compiled() -> dict[CompileJob, Outcome]:
    """The whole matrix, compiled once."""
    jobs = _jobs()
    return dict(zip(jobs, compile_all(jobs), strict=True))


def _kernel(job: CompileJob) -> TritonKernel:
    return next(kernel for kernel in kernels_of(job.module) if kernel.name == job.kernel)


@needs_triton
@pytest.mark.parametrize("job", _jobs(), ids=str)
def test_a_triton_kernel_fits_the_chip(job: CompileJob) -> None:
    outcome = compiled()[job]
    assert not isinstance(outcome, str), outcome
    found, _ = outcome
    architecture, kernel = ARCHITECTURES[job.sm], _kernel(job)
    assert found.spill_bytes == 0
    assert found.shared_bytes <= architecture.shared_per_block
    assert found.occupancy > 0
    if kernel.uses_tensor_cores:
        # A change of the second kind is good news: Triton can use Turing's tensor cores again.
        has_instruction = found.tensor_core_instruction is not None
        assert has_instruction == architecture.has_triton_tensor_cores
    if not any(fnmatch(kernel.name, pattern) for pattern in NARROW):
        assert found.wide_loads > 0


@needs_triton
@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_the_programs_of_the_coreset_have_room_at_a_time(sm: int) -> None:
    """They are made for so many warps per multiprocessor; a few that wait would end late."""
    from mmad_fast.ops.k_center_greedy.triton_kernel import RESIDENT_WARPS

    wanted = {f"fp{8 * dtype.itemsize}": warps for dtype, warps in RESIDENT_WARPS.items()}
    jobs = [j for j in _jobs() if j.kernel.startswith("k_center_greedy.step.") and j.sm == sm]
    assert jobs
    for job in jobs:
        outcome = compiled()[job]
        assert not isinstance(outcome, str), outcome
        found, _ = outcome
        blocks = ARCHITECTURES[sm].resident_blocks(
            num_warps=found.num_warps,
            registers=found.registers,
            shared_bytes=found.shared_bytes,
        )
        assert blocks * found.num_warps >= wanted[job.kernel.split(".")[2]], job


@needs_triton
def test_every_exception_is_of_a_kernel_that_is_there() -> None:
    names = {job.kernel for job in _jobs()}
    for pattern in NARROW:
        assert any(fnmatch(name, pattern) for name in names), pattern


@needs_triton
def test_names_of_kernels_are_unique() -> None:
    jobs = _jobs()
    assert len({(job.kernel, job.config, job.sm) for job in jobs}) == len(jobs)
    for job in jobs:
        assert job.kernel.split(".")[0] == job.module.split(".")[-2]


def test_every_triton_module_is_listed() -> None:
    files = sorted((ROOT / "mmad_fast" / "ops").glob("*/triton_kernel.py"))
    modules = [f"mmad_fast.ops.{file.parent.name}.triton_kernel" for file in files]
    assert sorted(TRITON_MODULES) == modules


@needs_triton
@pytest.mark.parametrize("module", TRITON_MODULES)
def test_every_kernel_of_a_module_is_compiled(module: str) -> None:
    """A jitted function is launched, and then it is among KERNELS, or another one calls it."""
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    jitted = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    called = {
        call.func.id
        for node in jitted.values()
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    assert set(jitted) - called == {kernel.function for kernel in kernels_of(module)}
    for kernel in kernels_of(module):
        names = [argument.arg for argument in jitted[kernel.function].args.args]
        constants = {
            argument.arg
            for argument in jitted[kernel.function].args.args
            if argument.annotation is not None and "constexpr" in ast.unparse(argument.annotation)
        }
        assert list(kernel.arguments) == [name for name in names if name not in constants]
        for configs in kernel.configs.values():
            for config in configs:
                assert {*kernel.constants, *config.constants} == constants, kernel.name


def _sources() -> list[str]:
    return sorted(file.parent.name for file in CSRC.glob("*/cuda.cu"))


@cache
def measured() -> list[CudaKernel]:
    """Every CUDA kernel on every architecture; a warning is an error."""
    return measure_cuda(CSRC, list(ARCHITECTURES))


@needs_nvcc
@pytest.mark.parametrize("sm", ARCHITECTURES)
@pytest.mark.parametrize("op", _sources())
def test_the_cuda_kernels_keep_to_their_budget(op: str, sm: int) -> None:
    kernels = [k for k in measured() if (k.op, k.sm) == (op, sm) and k.is_launched]
    assert kernels
    for kernel in kernels:
        budget = BUDGETS[kernel.name]
        assert kernel.spill_bytes == 0, kernel
        assert kernel.stack_bytes == 0, kernel
        assert kernel.registers <= budget.registers, kernel
        assert kernel.total_shared_bytes <= ARCHITECTURES[sm].shared_per_block, kernel
        assert kernel.occupancy >= budget.occupancy, kernel


def test_no_build_contracts_products_and_sums() -> None:
    """What the CPU has in float64, too, must round as there: where users build, where this file
    measures, and on the host."""
    assert "-fmad=false" in FLAGS
    assert "mmad_fast_cuda PRIVATE -fmad=false" in (ROOT / "CMakeLists.txt").read_text("utf-8")
    for file in ("csrc/CMakeLists.txt", "tests/cuda_emulation/build.py"):
        assert "-ffp-contract=off" in (ROOT / file).read_text(encoding="utf-8"), file


@needs_nvcc
def test_every_budget_is_of_a_kernel_that_is_there() -> None:
    names = {kernel.name for kernel in measured()}
    assert set(BUDGETS) == names
    assert set(LAUNCHES) <= names


@needs_nvcc
def test_kernels_with_dynamic_shared_memory_say_how_much() -> None:
    with_dynamic = {
        file.parent.name
        for file in CSRC.glob("*/cuda.cu")
        if "MMAD_FAST_DYNAMIC_SHARED(" in file.read_text(encoding="utf-8")
    }
    assert {kernel.op for kernel in measured() if kernel.name in LAUNCHES} == with_dynamic


@needs_triton
@needs_nvcc
def test_the_page_shows_what_was_measured() -> None:
    triton = [outcome[0] for outcome in compiled().values() if not isinstance(outcome, str)]
    page = load_pages()["gpu_resources"]
    wanted = resources.render_kernels(triton, measured(), page)
    found = difference((ROOT / page["file"]).read_text(encoding="utf-8"), wanted)
    if found is not None and "cannot be compared" in found:
        pytest.skip(found)
    assert found is None


def test_pages_of_other_versions_are_told_apart() -> None:
    made = f"a\n{resources.VERSIONS}triton 1.\n| x | 1 |"
    assert difference(made, made) is None
    assert "cannot be compared" in difference(made, made.replace("triton 1", "triton 2"))
    assert "out of date, e.g. '| x | 2 |'" in difference(made, made.replace("1 |", "2 |"))
