"""The page of what every GPU kernel needs on every architecture, by compiling it. Needs no GPU, but
Triton and nvcc."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata

from rendering.tables import Page
from settings import ROOT

from mmad_fast.gpu.ahead_of_time import CompileError, compile_all, compile_jobs
from mmad_fast.gpu.architectures import ARCHITECTURES, KIB
from mmad_fast.gpu.kernel_folder import CompiledKernel
from mmad_fast.measure.cuda_resources import CudaKernel, find_nvcc, measure_cuda, nvcc_version
from mmad_fast.measure.generated_pages import table_header, table_line

VERSIONS = "Compiled with "


def render(page: Page) -> str:
    return render_kernels(*measure(), page)


def render_kernels(triton: Sequence[CompiledKernel], cuda: Sequence[CudaKernel], page: Page) -> str:
    """The page in Markdown."""
    lines = [page["title"], versions(triton), "", "## Triton", "", page["triton_note"]]
    lines += [*triton_table(triton), "", page["instruction_note"], *instruction_table(triton)]
    lines += ["", "## CUDA", "", page["cuda_note"], *cuda_table(cuda), ""]
    return "\n".join(lines)


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


def matrix(
    titles: Sequence[str], cells: Mapping[tuple[str, ...], Mapping[int, str]], absent: str = ""
) -> list[str]:
    """One line per key, one column per architecture."""
    lines = table_header(*titles, *(f"sm_{sm}" for sm in ARCHITECTURES))
    for key, by_sm in cells.items():
        lines.append(table_line(*key, *(by_sm.get(sm, absent) for sm in ARCHITECTURES)))
    return lines


def triton_table(kernels: Sequence[CompiledKernel]) -> list[str]:
    wide: dict[tuple[str, str], set[int]] = {}
    for kernel in kernels:
        wide.setdefault((kernel.name, kernel.config), set()).add(kernel.wide_loads)
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    for kernel in kernels:
        key = kernel.name, kernel.config
        loads = "–".join(map(str, dict.fromkeys((min(wide[key]), max(wide[key])))))
        text = _cell(kernel.registers, kernel.spill_bytes, kernel.shared_bytes, kernel.occupancy)
        shown = f"**{text}**" if kernel.is_default else text
        cells.setdefault((*key, loads), {})[kernel.sm] = shown
    return matrix(("kernel", "configuration", "16 B"), cells)


def instruction_table(kernels: Sequence[CompiledKernel]) -> list[str]:
    """Of the kernels with tensor cores."""
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    for kernel in kernels:
        if kernel.is_default and kernel.tensor_core_instruction:
            cells.setdefault((kernel.name,), {})[kernel.sm] = kernel.tensor_core_instruction
    return matrix(("kernel",), cells, absent="–")


def cuda_table(kernels: Sequence[CudaKernel]) -> list[str]:
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    threads: dict[tuple[str, str], int] = {}
    for kernel in kernels:
        name = kernel.op, kernel.name
        key = f"{kernel.op}: `{kernel.name}`", str(threads.setdefault(name, kernel.max_threads))
        text = "–"
        if kernel.is_launched:
            shared = kernel.total_shared_bytes
            text = _cell(kernel.registers, kernel.spill_bytes, shared, kernel.occupancy)
        cells.setdefault(key, {})[kernel.sm] = text
    return matrix(("kernel", "threads"), cells)


def _cell(registers: int, spill_bytes: int, shared_bytes: int, occupancy: float) -> str:
    spills = f" (spills {spill_bytes} bytes)" if spill_bytes else ""
    return f"{registers}{spills} / {shared_bytes / KIB:.3g} / {occupancy:.0%}"


def measure() -> tuple[list[CompiledKernel], list[CudaKernel]]:
    """Every kernel compiled for every architecture.

    Raises:
        MissingDependencyError: Triton, torch or nvcc is not installed.
        CompileError, CudaCompileError: a kernel does not compile.
    """
    jobs = compile_jobs(ARCHITECTURES)
    cuda = measure_cuda(ROOT / "csrc", list(ARCHITECTURES))
    triton = []
    for job, outcome in zip(jobs, compile_all(jobs), strict=True):
        if isinstance(outcome, str):
            raise CompileError(f"{job}: does not compile: {outcome}")
        triton.append(outcome[0])
    return triton, cuda
