"""What the CUDA kernels need of a multiprocessor, as nvcc's assembler reports it. Needs no GPU."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mmad_fast.cache_folder import cache_root
from mmad_fast.errors import MissingDependencyError, MmadFastError
from mmad_fast.gpu.architectures import ARCHITECTURES, WARP_SIZE
from mmad_fast.scratch_folder import temporary_folder
from mmad_fast.whole_folder import whole_file

FLAGS = ("-std=c++17", "-O3", "-fmad=false", "--Werror", "all-warnings", "-Xptxas", "-v", "-cubin")
HEADERS = ("*.h", "*.cuh", "*.inc")
_FUNCTION = re.compile(
    r"Compiling entry function '(\w+)' for '\w+'\n"
    r".*?Function properties for \1\n"
    r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*?Used (\d+) registers(?:[^\n]*?, (\d+) bytes smem)?",
    re.DOTALL,
)
_ENTRY = re.compile(r"\.entry (\w+)\([^)]*\)\s*((?:\.\w+ [\d, ]+\s*)*)\{")
_NAMESPACE = "mmad_fast::cuda::"


@dataclass(frozen=True)
class Launch:
    """What the assembler cannot know of a launch.

    Attributes:
        dynamic_shared_bytes: Of a block, for a usual scan; None: all that a block may have.
        needs_clusters: Launched on architectures with thread-block clusters only.
    """

    dynamic_shared_bytes: int | None = 0
    needs_clusters: bool = False


LAUNCHES = {
    "sample_leaves<1>": Launch(None),
    "sample_leaves<8>": Launch(None, needs_clusters=True),
    "find_neighbors": Launch(4 * 256 * 8),  # warps, keys of each for K = 128, bytes of a key
    "list_neighbors": Launch(4 * 256 * 8),
}
"""By kernel; one that is not here has no dynamic shared memory and runs everywhere."""


class CudaCompileError(MmadFastError):
    """nvcc refused a source, or wrote what is not understood."""


@dataclass(frozen=True)
class CudaKernel:
    """What one kernel (or instance of a template) needs on one architecture.

    Attributes:
        op: The folder of csrc/.
        name: As in the source, with template arguments.
        sm: The compute capability.
        registers: Of a thread.
        stack_bytes: Of a thread.
        spill_bytes: Stores and loads of registers that did not fit.
        shared_bytes: Static shared memory of a block.
        max_threads: Of a block: its __launch_bounds__.
    """

    op: str
    name: str
    sm: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    max_threads: int

    @property
    def launch(self) -> Launch:
        """What the assembler cannot know."""
        return LAUNCHES.get(self.name, Launch())

    @property
    def is_launched(self) -> bool:
        """Whether this architecture has what the kernel needs."""
        return ARCHITECTURES[self.sm].has_clusters or not self.launch.needs_clusters

    @property
    def total_shared_bytes(self) -> int:
        """Of a block, static and dynamic."""
        dynamic = self.launch.dynamic_shared_bytes
        if dynamic is None:
            return ARCHITECTURES[self.sm].shared_per_block
        return self.shared_bytes + dynamic

    @property
    def occupancy(self) -> float:
        """The part of a multiprocessor's warps that blocks of `max_threads` keep resident."""
        return ARCHITECTURES[self.sm].occupancy(
            num_warps=-(-self.max_threads // WARP_SIZE),
            registers=self.registers,
            shared_bytes=self.total_shared_bytes,
        )


def find_nvcc() -> Path | None:
    """The CUDA compiler: $CUDACXX, else the one on the PATH, else pip's; None if there is none."""
    named = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if named:
        found = shutil.which(named)
        return None if found is None else Path(found)
    return installed_nvcc()


def installed_nvcc() -> Path | None:
    """The CUDA compiler that pip installed, for machines without a CUDA tool kit."""
    package = find_spec("nvidia")
    folders = (package and package.submodule_search_locations) or ()
    found = (path for folder in folders for path in sorted(Path(folder).glob("cu*/bin/nvcc")))
    return next(found, None)


@cache
def nvcc_version(nvcc: Path) -> str:
    """E.g. "13.0.88"."""
    command = [str(nvcc), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", said)
    return "unknown" if found is None else found.group(1)


def measure_cuda(
    csrc: Path, sms: Sequence[int], *, nvcc: Path | None = None, processes: int = 2
) -> list[CudaKernel]:
    """Every kernel of csrc/*/cuda.cu on every architecture, by op, name and compute capability.

    What was compiled is kept in the user's cache of mmad-fast, by the sources and nvcc's version.

    Args:
        csrc: The sources.
        sms: Compute capabilities.
        nvcc: The compiler; default: `find_nvcc`.
        processes: That compile.

    Raises:
        MissingDependencyError: there is no nvcc.
        CudaCompileError: nvcc has an error or a warning; a kernel has no __launch_bounds__.
    """
    compiler = nvcc or find_nvcc()
    if compiler is None:
        raise MissingDependencyError(
            "compiling the CUDA kernels needs nvcc, which was not found; install it with: pip "
            "install 'mmad-fast[dev]', put it on the PATH, or name it with CUDACXX"
        )
    headers = sorted(file for pattern in HEADERS for file in csrc.rglob(pattern))
    jobs = [(source, sm) for source in sorted(csrc.glob("*/cuda.cu")) for sm in sms]

    def compile_one(job: tuple[Path, int]) -> list[CudaKernel]:
        source, sm = job
        digest = hashlib.sha256(f"{nvcc_version(compiler)} {FLAGS} {source} {sm}".encode())
        for file in (source, *headers, Path(__file__)):
            digest.update(file.read_bytes())
        cached = cache_root() / "nvcc" / f"{digest.hexdigest()}.json"
        if cached.is_file():
            return [CudaKernel(**row) for row in json.loads(cached.read_text(encoding="utf-8"))]
        kernels = _compile(source, sm, compiler)
        with whole_file(cached) as partial:
            partial.write_text(json.dumps([asdict(kernel) for kernel in kernels]), "utf-8")
        return kernels

    with ThreadPoolExecutor(processes) as pool:
        kernels = [kernel for found in pool.map(compile_one, jobs) for kernel in found]
    return sorted(kernels, key=lambda kernel: (kernel.op, kernel.name, kernel.sm))


def _compile(source: Path, sm: int, nvcc: Path) -> list[CudaKernel]:
    with temporary_folder("nvcc") as scratch:
        command = [str(nvcc), *FLAGS, f"-arch=sm_{sm}", "-I", str(source.parents[1])]
        command += ["--keep", "--keep-dir", str(scratch), "-o", str(scratch / "kernels.cubin")]
        command += [str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CudaCompileError(f"{source} for sm_{sm}: {(done.stderr + done.stdout).strip()}")
        ptx = (scratch / f"{source.stem}.ptx").read_text(encoding="utf-8")
    bounds = dict(_ENTRY.findall(ptx))
    kernels = []
    for symbol, *numbers in _FUNCTION.findall(done.stderr + done.stdout):
        stack, stores, loads, registers, shared = (int(number or 0) for number in numbers)
        name = kernel_name(symbol)
        threads = re.search(r"\.(?:max|req)ntid (\d+)", bounds.get(symbol, ""))
        if threads is None:
            raise CudaCompileError(
                f"{source}: the kernel {name} has no __launch_bounds__; give it the number of "
                "threads that it is launched with"
            )
        kernels.append(
            CudaKernel(
                op=source.parent.name,
                name=name,
                sm=sm,
                registers=registers,
                stack_bytes=stack,
                spill_bytes=stores + loads,
                shared_bytes=shared,
                max_threads=int(threads.group(1)),
            )
        )
    if len(kernels) != len(bounds):
        raise CudaCompileError(f"{source}: the report of nvcc {nvcc_version(nvcc)} is not known")
    return kernels


def kernel_name(symbol: str) -> str:
    """A kernel's name as in the source, without namespaces and parameters."""
    full = _demangle(symbol).replace("(anonymous namespace)::", "").replace(_NAMESPACE, "")
    depth = 0
    for index, letter in enumerate(full):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            full = full[:index]
            break
    return full.removeprefix("void ")


def _demangle(symbol: str) -> str:
    """By the C++ runtime that the compiled kernels of the CPU load too."""
    runtime = ctypes.CDLL("libstdc++.so.6")
    runtime.__cxa_demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    text = runtime.__cxa_demangle(symbol.encode(), None, None, ctypes.byref(status))
    if not text:
        return symbol
    demangled = ctypes.string_at(text).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(text))
    return demangled
