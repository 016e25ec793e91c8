"""Kernels compiled ahead of time against those that Triton compiles when they are called.

Every Triton case of the kernel table runs twice: as always, and with each launch handed to
`mmad_fast.gpu.launcher`, which needs no Triton. The results must agree with the reference alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu.build_and_test import run_process
from gpu.device import Device
from gpu.kernel_table import function_of, replaced_lookup, wrong
from gpu.rows import RowFile
from ops.case import Case, Sizes, gpu_case_makers, largest_difference, parts_of
from settings import timing_fields

from mmad_fast.gpu.triton_kernels import TRITON_MODULES, LaunchConfig, TritonKernel

STEP = "cubins"
BUILD_TIMEOUT_S = 400.0
Launch = Callable[[TritonKernel, tuple[int, ...], Mapping[str, Any]], None]


def build_cubins(sm: int, folder: Path) -> None:
    """Compiles the kernels for a compute capability into the folder.

    Raises:
        RuntimeError: the command failed.
    """
    command = [sys.executable, "-c", "from mmad_fast.cli import main; main()"]
    command += ["kernels", "build", "--sm", str(sm), "--output", str(folder)]
    code, tail, _ = run_process(command, environment={}, timeout_s=BUILD_TIMEOUT_S)
    if code != 0:
        raise RuntimeError(f"mmad-fast kernels build ended with {code}: {tail}")


def device_launch(folder: Path, device: Device) -> Launch:
    """Launches from a folder of cubins on torch's current stream."""
    import torch

    from mmad_fast.gpu.launcher import Launcher

    launcher = Launcher(folder, device=torch.cuda.current_device())

    def launch(kernel: TritonKernel, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
        values = {
            name: value.data_ptr() if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        stream = torch.cuda.current_stream().cuda_stream
        launcher.launch(kernel.name, grid, values, stream=stream)

    return launch


def compare_cubins(device: Device, rows: RowFile, sizes: Sizes, launch: Launch) -> None:
    """A row per case that a Triton kernel serves."""
    for make in gpu_case_makers(sizes, device):
        with rows.guarded(STEP, "inputs"):
            for case in make():
                for contender in case.contenders:
                    if contender.name == "triton":
                        function = function_of(contender, case, device, rows, STEP)
                        if function is not None:
                            compare_case(case, function, device, rows, launch)


def compare_case(
    case: Case, function: Callable[[], Any], device: Device, rows: RowFile, launch: Launch
) -> None:
    with rows.guarded(STEP, case.what, backend="cubin", **case.facts) as write:
        compiled_now = parts_of(function())
        with routed_launches(launch) as launched:
            ahead = function()
            device.synchronize()
            error = case.error_of(ahead)
            difference = largest_difference(parts_of(ahead), compiled_now)
            timing = timing_fields(
                device.latencies_ms(function, num_warmup=2, num_runs=20, is_cold=True)
            )
        if not launched:
            raise RuntimeError("no launch of the case went through the launcher")
        outcome = timing if error <= case.max_error else wrong(case, error)
        write(
            kernels=sorted(launched),
            error=error,
            max_error=case.max_error,
            difference_to_jit=difference,
            **outcome,
        )


@contextmanager
def routed_launches(launch: Launch) -> Iterator[set[str]]:
    """Every launch of our Triton kernels goes to `launch`; yields the names of those launched."""
    launched: set[str] = set()
    wanted: dict[str, TritonKernel] = {}

    def remember(kernel: TritonKernel, configs: tuple[LaunchConfig, ...]) -> Any:
        wanted[kernel.function] = kernel  # a launch follows its look-up
        return configs

    replaced: list[tuple[Any, str, Any]] = []
    try:
        for module in importable_modules():
            for name in {kernel.function for kernel in module.KERNELS}:
                replaced.append((module, name, getattr(module, name)))
                setattr(module, name, _Routed(name, wanted, launch, launched))
        with replaced_lookup(remember):
            yield launched
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)


def importable_modules() -> list[Any]:
    found = []
    for name in TRITON_MODULES:
        try:
            found.append(import_module(name))
        except ImportError:
            continue
    return found


class _Routed:
    """Stands in for a JIT function: `function[grid](*arguments, **options)`."""

    def __init__(
        self, name: str, wanted: Mapping[str, TritonKernel], launch: Launch, launched: set[str]
    ) -> None:
        self._name = name
        self._wanted = wanted
        self._launch = launch
        self._launched = launched

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def run(*arguments: Any, **options: Any) -> None:
            kernel = self._wanted[self._name]
            blocks = grid(options) if callable(grid) else grid
            named = dict(zip(kernel.arguments, arguments, strict=False))
            named |= {name: options[name] for name in kernel.arguments if name in options}
            self._launched.add(kernel.name)
            self._launch(kernel, tuple(blocks), named)

        return run
