"""Writes docs/gpu_resources.md: what every GPU kernel needs on every architecture, by compiling it.

Needs no GPU, but Triton and nvcc; minutes the first time, seconds after that (user's cache).

python bench/tables/gpu_resources.py            # rewrites the page
python bench/tables/gpu_resources.py --check    # exit code 1 if the page would change
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from mmad_fast.gpu.ahead_of_time import CompileError, compile_all, compile_jobs
from mmad_fast.gpu.architectures import ARCHITECTURES, KIB
from mmad_fast.gpu.kernel_folder import CompiledKernel
from mmad_fast.measure.cuda_resources import CudaKernel, find_nvcc, measure_cuda, nvcc_version

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu_resources.md"
CSRC = ROOT / "csrc"
VERSIONS = "Compiled with "

TITLE = """\
# What the GPU kernels need

Made by `bench/tables/gpu_resources.py`, which compiles every kernel for every architecture; no GPU
takes part, and nothing here is a time. A cell: registers of a thread / KiB of shared memory of a
block / occupancy, the part of a multiprocessor's warps that are resident, computed from both. No
kernel may spill registers; `tests/gpu/test_compile_matrix.py` holds them to this and to a budget.
"""
TRITON_NOTE = """\
**Bold** is the configuration that runs; `bench/on_gpu.py` times the others. Its name: tile sizes,
warps (w), stages of the pipeline (s). "16 B": loads from global memory of 16 bytes or more, the
fewest and the most of any architecture.
"""
INSTRUCTION_NOTE = """\
Instruction of the dot products of the configuration that runs. Triton has none for Turing's tensor
cores: there they are fused multiply-adds.
"""
CUDA_NOTE = """\
One line per kernel or instance of a template, at the block size of its `__launch_bounds__`, with
the dynamic shared memory of a usual scan. `sample_leaves` runs one block per multiprocessor and
takes all the shared memory that a block may have. –: there are no thread-block clusters.
"""


def render(triton: Sequence[CompiledKernel], cuda: Sequence[CudaKernel]) -> str:
    """The page in Markdown."""
    return "\n".join(
        [
            TITLE,
            versions(triton),
            "",
            "## Triton",
            "",
            TRITON_NOTE,
            *triton_table(triton),
            "",
            INSTRUCTION_NOTE,
            *instruction_table(triton),
            "",
            "## CUDA",
            "",
            CUDA_NOTE,
            *cuda_table(cuda),
            "",
        ]
    )


def versions(triton: Iterable[CompiledKernel]) -> str:
    """The line that says with what the page was made."""
    assemblers: dict[str, list[str]] = {}
    for kernel in sorted(triton, key=lambda kernel: kernel.sm):
        names = assemblers.setdefault(kernel.ptxas, [])
        if (name := f"sm_{kernel.sm}") not in names:
            names.append(name)
    parts = [
        f"ptxas {version} for {names[0]} to {names[-1]}" for version, names in assemblers.items()
    ]
    nvcc = find_nvcc()
    nvcc_text = "no nvcc" if nvcc is None else f"nvcc {nvcc_version(nvcc)}"
    return f"{VERSIONS}triton {metadata.version('triton')} ({', '.join(parts)}) and {nvcc_text}."


def triton_table(kernels: Sequence[CompiledKernel]) -> list[str]:
    """One line per kernel and configuration, one column per architecture."""
    by_row: dict[tuple[str, str], dict[int, CompiledKernel]] = {}
    for kernel in kernels:
        by_row.setdefault((kernel.name, kernel.config), {})[kernel.sm] = kernel
    lines = _head("kernel", "configuration", "16 B")
    for (name, config), by_sm in by_row.items():
        cells = []
        for sm in ARCHITECTURES:
            kernel = by_sm.get(sm)
            cells.append("" if kernel is None else _triton_cell(kernel))
        wide = sorted({kernel.wide_loads for kernel in by_sm.values()})
        count = str(wide[0]) if len(wide) == 1 else f"{wide[0]}–{wide[-1]}"
        lines.append(_line([name, config, count, *cells]))
    return lines


def _triton_cell(kernel: CompiledKernel) -> str:
    text = _cell(kernel.registers, kernel.spill_bytes, kernel.shared_bytes, kernel.occupancy)
    return f"**{text}**" if kernel.is_default else text


def instruction_table(kernels: Sequence[CompiledKernel]) -> list[str]:
    """One line per kernel with tensor cores, one column per architecture."""
    by_name: dict[str, dict[int, str | None]] = {}
    for kernel in kernels:
        if kernel.is_default:
            by_name.setdefault(kernel.name, {})[kernel.sm] = kernel.tensor_core_instruction
    lines = _head("kernel")
    for name, by_sm in by_name.items():
        if any(by_sm.values()):
            lines.append(_line([name, *(by_sm.get(sm) or "–" for sm in ARCHITECTURES)]))
    return lines


def cuda_table(kernels: Sequence[CudaKernel]) -> list[str]:
    """One line per kernel, one column per architecture."""
    by_row: dict[tuple[str, str], dict[int, CudaKernel]] = {}
    for kernel in kernels:
        by_row.setdefault((kernel.op, kernel.name), {})[kernel.sm] = kernel
    lines = _head("kernel", "threads")
    for (op, name), by_sm in by_row.items():
        cells = [_cuda_cell(by_sm[sm]) for sm in ARCHITECTURES]
        threads = next(iter(by_sm.values())).max_threads
        lines.append(_line([f"{op}: `{name}`", str(threads), *cells]))
    return lines


def _cuda_cell(kernel: CudaKernel) -> str:
    if not kernel.is_launched:
        return "–"
    return _cell(kernel.registers, kernel.spill_bytes, kernel.total_shared_bytes, kernel.occupancy)


def _cell(registers: int, spill_bytes: int, shared_bytes: int, occupancy: float) -> str:
    spills = f" (spills {spill_bytes} bytes)" if spill_bytes else ""
    return f"{registers}{spills} / {shared_bytes / KIB:.3g} / {occupancy:.0%}"


def _head(*titles: str) -> list[str]:
    columns = [*titles, *(f"sm_{sm}" for sm in ARCHITECTURES)]
    return [_line(columns), "|---" * len(columns) + "|"]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def measure() -> tuple[list[CompiledKernel], list[CudaKernel]]:
    """Every kernel compiled for every architecture.

    Raises:
        MissingDependencyError: Triton, torch or nvcc is not installed.
        CompileError, CudaCompileError: a kernel does not compile.
    """
    jobs = compile_jobs(ARCHITECTURES)
    cuda = measure_cuda(CSRC, list(ARCHITECTURES))
    triton = []
    for job, outcome in zip(jobs, compile_all(jobs), strict=True):
        if isinstance(outcome, str):
            raise CompileError(f"{job}: does not compile: {outcome}")
        triton.append(outcome[0])
    return triton, cuda


def difference(page: str, wanted: str) -> str | None:
    """Why the page is not the wanted one; None if it is."""
    if page == wanted:
        return None
    made, here = (
        next((line for line in text.splitlines() if line.startswith(VERSIONS)), "")
        for text in (page, wanted)
    )
    if made != here:
        return f"the page says {made!r}, here it is {here!r}: they cannot be compared"
    lines = [line for line in wanted.splitlines() if line not in page.splitlines()]
    return f"the page is out of date, e.g. {lines[0] if lines else 'a line too many'!r}"


def main() -> int:
    """Exit code 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, report a difference")
    options = parser.parse_args()
    wanted = render(*measure())
    if options.check:
        found = difference(PAGE.read_text(encoding="utf-8") if PAGE.exists() else "", wanted)
        if found is not None:
            print(f"{PAGE.name}: {found}; rewrite it: python bench/tables/gpu_resources.py")
        return int(found is not None)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
