"""Triton kernels compiled ahead of time: to cubins that load without torch and Triton.

No GPU is needed: the target is named. Compiling happens in fresh processes, because a process in
which TRITON_INTERPRET was set when Triton was imported cannot compile, and because a fault in the
compiler ends the process:

    python -m mmad_fast.gpu.ahead_of_time    # compiles the jobs on stdin, one JSON object a line
"""

from __future__ import annotations

import base64
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmad_fast.cache_folder import cache_root
from mmad_fast.errors import InvalidInputError, MissingDependencyError, MmadFastError
from mmad_fast.gpu.architectures import ARCHITECTURES, WARP_SIZE
from mmad_fast.gpu.kernel_folder import KIND, CompiledKernel, split_type, write_kernel_folder
from mmad_fast.gpu.triton_kernels import TRITON_MODULES, LaunchConfig, TritonKernel
from mmad_fast.scratch_folder import temporary_folder
from mmad_fast.whole_folder import new_folder_beside

MAX_HIDDEN_POINTERS = 2
"""Triton's scratch memory in global memory and that of its profiler."""
TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
WIDE_LOADS = re.compile(
    r"\bld\.global(?:\.[a-z0-9_]+(?:::[a-z0-9_]+)*)*\.(?:v4\.[bfu]32|v8\.[bfu]32|v[24]\.[bfu]64)\b"
    r"|\bcp\.async\.cg\.shared\.global\b|\bcp\.async\.bulk\b"
)
ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)", re.DOTALL)
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")

Progress = Callable[[str, int, int], None]


class CompileError(MmadFastError):
    """A kernel does not compile."""


@dataclass(frozen=True)
class CompileJob:
    """One kernel, configuration and compute capability.

    Attributes:
        module: The kernel's module.
        kernel: Its name.
        config: The label of one of its configurations for `sm`.
        sm: The compute capability.
    """

    module: str
    kernel: str
    config: str
    sm: int

    def __str__(self) -> str:
        return f"{self.kernel} {self.config} sm_{self.sm}"


def compile_jobs(
    sms: Iterable[int], *, all_configs: bool = True, modules: Sequence[str] = TRITON_MODULES
) -> list[CompileJob]:
    """What there is to compile for these compute capabilities.

    Args:
        sms: Compute capabilities, e.g. 89.
        all_configs: Not only the configuration that runs by default.
        modules: Modules with a tuple KERNELS.

    Raises:
        InvalidInputError: a compute capability is not among ARCHITECTURES.
        MissingDependencyError: triton or torch is not installed.
    """
    wanted = tuple(dict.fromkeys(sms))
    unknown = [sm for sm in wanted if sm not in ARCHITECTURES]
    if unknown or not wanted:
        known = ", ".join(f"{sm} ({a.chips})" for sm, a in ARCHITECTURES.items())
        raise InvalidInputError(
            f"the compute capability is {', '.join(map(str, unknown)) or 'missing'}; "
            f"it must be one or several of {known}"
        )
    jobs = []
    for module in modules:
        for kernel in kernels_of(module):
            for sm in wanted:
                configs = kernel.configs_for(sm)
                for config in configs if all_configs else configs[:1]:
                    jobs.append(CompileJob(module, kernel.name, config.label, sm))
    return jobs


def kernels_of(module: str) -> tuple[TritonKernel, ...]:
    """The kernels of a module.

    Raises:
        MissingDependencyError: triton or torch is not installed.
    """
    missing = [name for name in ("triton", "torch") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"Triton's kernels need {' and '.join(missing)}, which is not installed here; install "
            "with: pip install 'mmad-fast[gpu]' (Triton has wheels for Linux on x86-64)"
        )
    return tuple(import_module(module).KERNELS)


def build_kernels(
    output: Path | str,
    sms: Iterable[int],
    *,
    all_configs: bool = False,
    modules: Sequence[str] = TRITON_MODULES,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """The absolute path of a folder with the kernels, compiled, as `kernel_folder` describes it.

    Args:
        output: The folder; one that an earlier build wrote is replaced.
        sms: Compute capabilities, e.g. 89.
        all_configs: Not only the configuration that runs by default.
        modules: Modules with a tuple KERNELS.
        processes: That compile; default: the cores of this process.
        progress: Is called with (job, done, total).

    Raises:
        InvalidInputError: unknown compute capability, or `output` is no path.
        MissingDependencyError: triton or torch is not installed.
        CompileError: a kernel does not compile.
        ArtifactError: `output` holds something else, or cannot be written.
    """
    jobs = compile_jobs(sms, all_configs=all_configs, modules=modules)
    with new_folder_beside(output, KIND):
        pass  # whether it can be written, before anything is compiled
    outcomes = compile_all(jobs, processes=processes, progress=progress)
    cubins = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, str):
            raise CompileError(f"{job}: does not compile: {outcome}")
        cubins.append(outcome)
    return write_kernel_folder(output, triton=metadata.version("triton"), cubins=cubins)


Outcome = tuple[CompiledKernel, bytes] | str


def compile_all(
    jobs: Sequence[CompileJob],
    *,
    processes: int | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """(record, cubin) per job, or what the compiler said where it failed.

    Triton keeps what it has compiled under the user's cache of mmad-fast (or TRITON_CACHE_DIR), by
    the sources, so that the same is compiled once.

    Args:
        jobs: What to compile.
        processes: That compile; default: the cores of this process.
        progress: Is called with (job, done, total).
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(jobs)):
        waiting.put(index)
    outcomes: dict[int, Outcome] = {}

    def serve() -> None:
        with closing(_Worker()) as worker:
            while True:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                outcomes[index] = worker.compile(jobs[index])
                if progress is not None:
                    progress(str(jobs[index]), len(outcomes), len(jobs))

    count = min(processes or len(os.sched_getaffinity(0)), max(1, len(jobs)))
    with ThreadPoolExecutor(count) as pool:
        for served in [pool.submit(serve) for _ in range(count)]:
            served.result()
    return [outcomes[index] for index in range(len(jobs))]


class _Worker:
    """A process that compiles; started at the first job, and again after a fault."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (until close)

    def compile(self, job: CompileJob) -> Outcome:
        """The compiled kernel, or what the compiler said."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self._stop()
            self._errors.seek(0)
            said = self._errors.read().strip()
            return f"the compiler ended with exit code {code}: {said[-2000:]}"
        answer = json.loads(line)
        content = base64.b64decode(answer.pop("cubin"))
        return CompiledKernel(**answer), content

    def close(self) -> None:
        """Ends the process."""
        self._stop()
        self._errors.close()

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
        environment.setdefault("TRITON_CACHE_DIR", str(cache_root() / "triton"))
        # Without line numbers a cubin names no path and is the same wherever it was compiled.
        environment["TRITON_DISABLE_LINE_INFO"] = "1"
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self._errors.seek(0)
        self._errors.truncate()
        return subprocess.Popen(
            [sys.executable, "-m", "mmad_fast.gpu.ahead_of_time"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.communicate()


def _compile(job: CompileJob) -> tuple[CompiledKernel, bytes]:
    """The kernel of a job, compiled in this process."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel = next(k for k in kernels_of(job.module) if k.name == job.kernel)
    configs = kernel.configs_for(job.sm)
    config = next(c for c in configs if c.label == job.config)
    function = getattr(import_module(job.module), kernel.function)
    types = {name: split_type(kind) for name, kind in kernel.arguments.items()}
    constants = {**kernel.constants, **config.constants}
    source = ASTSource(
        function,
        signature={
            name: "constexpr" if name in constants else types[name][0]
            for name in function.arg_names
        },
        constexprs=constants,
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(function.arg_names)
            if name in types and types[name][1]
        },
    )
    target, options = GPUTarget("cuda", job.sm, WARP_SIZE), kernel.compiler_options(config)
    compiled = compile(source, target=target, options=options)
    cubin = compiled.asm["cubin"]
    return _describe(kernel, config, config is configs[0], job.sm, compiled), cubin


def _describe(
    kernel: TritonKernel, config: LaunchConfig, is_default: bool, sm: int, compiled: Any
) -> CompiledKernel:
    facts, ptx = compiled.metadata, compiled.asm["ptx"]
    found = ENTRY.search(ptx)
    resources = RESOURCES.search(_resource_usage(compiled.asm["cubin"]))
    if found is None or resources is None:
        raise CompileError("this version of Triton writes another PTX or cubin than 3.6 to 3.8")
    hidden = found.group(2).count(".param") - len(kernel.arguments)
    scratch = facts.global_scratch_size + facts.profile_scratch_size
    if not 0 <= hidden <= MAX_HIDDEN_POINTERS or scratch or facts.num_ctas != 1:
        raise CompileError(
            f"it needs {hidden} hidden parameters, {scratch} bytes of scratch memory and clusters "
            f"of {facts.num_ctas}; the launcher gives {MAX_HIDDEN_POINTERS} null pointers at most"
        )
    instruction = TENSOR_CORES.search(ptx)
    return CompiledKernel(
        name=kernel.name,
        config=config.label,
        is_default=is_default,
        sm=sm,
        entry=found.group(1),
        constants={**kernel.constants, **config.constants},
        num_warps=facts.num_warps,
        num_stages=facts.num_stages,
        shared_bytes=facts.shared,
        arguments=[[name, kind] for name, kind in kernel.arguments.items()],
        hidden_pointers=hidden,
        registers=int(resources.group(1)),
        spill_bytes=int(resources.group(2)),
        tensor_core_instruction=None if instruction is None else instruction.group(1),
        wide_loads=len(WIDE_LOADS.findall(ptx)),
        ptxas=_ptxas_version(sm),
    )


def _resource_usage(cubin: bytes) -> str:
    """What cuobjdump, which Triton brings, says of a cubin with one function."""
    from triton import knobs

    with temporary_folder("cubin") as folder:
        file = folder / "kernel.cubin"
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def _ptxas_version(sm: int) -> str:
    from triton.backends.nvidia.compiler import get_ptxas

    command = [get_ptxas(sm).path, "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", said)
    return "unknown" if found is None else found.group(1)


def main() -> None:
    """Compiles the jobs on stdin, one JSON object a line; writes one per job to stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the compiler prints must not stand among the answers
    for line in sys.stdin:
        record, cubin = _compile(CompileJob(**json.loads(line)))
        answer = {**asdict(record), "cubin": base64.b64encode(cubin).decode()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
