"""The kernel table: every op and backend checked against the reference and then timed, beside
torch's own way; and every configuration of each Triton kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ceilings import product_precision
from feature_op_cases import feature_cases
from geometry_op_cases import geometry_cases
from gpu_device import Device
from gpu_rows import FAILED, NOT_RUN, RowFile, rate_fields, timing_fields
from op_cases import OpCase, Sizes, frames

from mmad_fast.gpu.triton_kernels import LaunchConfig, TritonKernel

STEP = "kernels"
CONFIG_STEP = "configurations"
MIN_RUNS = 5


@dataclass(frozen=True)
class Budget:
    """How long the table may take.

    Attributes:
        num_runs: Calls per row at most.
        row_s: Seconds of measured calls per row, at least MIN_RUNS calls.
        num_configs: Configurations per Triton kernel at most.
    """

    num_runs: int = 200
    row_s: float = 2.0
    num_configs: int = 100

    def runs_for(self, call_ms: float) -> int:
        return max(MIN_RUNS, min(self.num_runs, int(1e3 * self.row_s / call_ms)))


QUICK_BUDGET = Budget(num_runs=30, row_s=0.3, num_configs=4)


def measure_kernels(
    device: Device, rows: RowFile, sizes: Sizes, ceilings: dict[str, float], budget: Budget
) -> None:
    """A row per case and backend, and per configuration of the Triton kernels behind it."""
    for frame in frames(sizes):
        with rows.guarded(STEP, "inputs", shapes={"N": len(frame.points)}):
            for case in geometry_cases(frame, sizes, device):
                measure_case(case, device, rows, ceilings, budget)
    for make in feature_cases(sizes, device):
        with rows.guarded(STEP, "inputs"):
            for case in make():
                measure_case(case, device, rows, ceilings, budget)
        release(device)


def release(device: Device) -> None:
    """Gives memory that torch keeps for later back: the next inputs may need it whole."""
    if device.is_cuda:
        import torch

        torch.cuda.empty_cache()


def measure_case(
    case: OpCase, device: Device, rows: RowFile, ceilings: dict[str, float], budget: Budget
) -> None:
    facts = {"shapes": case.shapes, "dtype": case.dtype}
    for backend, reason in case.refusals.items():
        # On a GPU every backend must run; where there is none, the row says why not.
        status = FAILED if device.is_cuda else NOT_RUN
        rows.write(STEP, case.what, backend=backend, status=status, reason=reason, **facts)
    for backend, function in case.functions.items():
        with rows.guarded(STEP, case.what, backend=backend, **facts):
            error = case.error_of(function())
            if not error <= case.max_error:
                rows.write(
                    STEP,
                    case.what,
                    backend=backend,
                    status=FAILED,
                    reason=f"error {error:.3g} is above {case.max_error:.3g}; not timed",
                    error=error,
                    max_error=case.max_error,
                    **facts,
                )
                continue
            fields = timed(function, case, device, ceilings, budget)
            rows.write(
                STEP,
                case.what,
                backend=backend,
                error=error,
                max_error=case.max_error,
                **facts,
                **fields,
            )
            measure_configs(case, backend, function, device, rows, ceilings, budget)
    for backend, function in case.baselines.items():
        with (
            rows.guarded(STEP, case.what, backend=backend, is_baseline=True, **facts),
            product_precision("float32"),
        ):
            error = case.error_of(function())
            fields = timed(function, case, device, ceilings, budget)
            rows.write(
                STEP, case.what, backend=backend, is_baseline=True, error=error, **facts, **fields
            )


def timed(
    function: Callable[[], Any],
    case: OpCase,
    device: Device,
    ceilings: dict[str, float],
    budget: Budget,
) -> dict[str, Any]:
    """Times with a cold second level cache, the median with a warm one, the host's share, rates."""
    (first,) = device.latencies_ms(function, num_warmup=1, num_runs=1, is_cold=True)
    num_runs = budget.runs_for(first)
    cold = timing_fields(
        device.latencies_ms(function, num_warmup=1, num_runs=num_runs, is_cold=True)
    )
    warm = timing_fields(
        device.latencies_ms(function, num_warmup=1, num_runs=num_runs, is_cold=False)
    )
    return {
        **cold,
        "warm_p50_ms": warm["p50_ms"],
        "memory_mib": device.peak_memory_mib(function),
        **rate_fields(case.work, cold["p50_ms"], ceilings, case.dtype),
    }


def measure_configs(
    case: OpCase,
    backend: str,
    function: Callable[[], Any],
    device: Device,
    rows: RowFile,
    ceilings: dict[str, float],
    budget: Budget,
) -> None:
    """A row per further configuration of each Triton kernel behind the function, and one that names
    the fastest of them and of the one that runs."""
    for kernel, configs in used_kernels(function).items():
        if len(configs) < 2:
            continue
        found: dict[str, float] = {}
        for number, config in enumerate(configs[: budget.num_configs]):
            label = config_label(config)
            facts = {
                "backend": backend,
                "kernel": kernel,
                "config": label,
                "is_default": number == 0,
                "shapes": case.shapes,
                "dtype": case.dtype,
            }
            with (
                rows.guarded(CONFIG_STEP, case.what, **facts),
                chosen_config(kernel, config),
            ):
                error = case.error_of(function())
                is_right = error <= case.max_error
                if not is_right:
                    reason = f"error {error:.3g} is above {case.max_error:.3g}; not timed"
                    rows.write(CONFIG_STEP, case.what, status=FAILED, reason=reason, **facts)
                    continue
                fields = timed(function, case, device, ceilings, budget)
                rows.write(CONFIG_STEP, case.what, error=error, **facts, **fields)
                found[label] = fields["p50_ms"]
        if found:
            best = min(found, key=lambda label: found[label])
            rows.write(
                CONFIG_STEP,
                f"{case.what}: fastest",
                backend=backend,
                kernel=kernel,
                config=best,
                is_default=best == config_label(configs[0]),
                shapes=case.shapes,
                dtype=case.dtype,
                p50_ms=found[best],
                default_p50_ms=found.get(config_label(configs[0])),
            )


def config_label(config: LaunchConfig) -> str:
    """E.g. "BLOCK_N=32 BLOCK_G=32 warps=4 stages=1"."""
    sizes = [f"{name}={value}" for name, value in config.constants.items()]
    return " ".join([*sizes, f"warps={config.num_warps}", f"stages={config.num_stages}"])


def used_kernels(function: Callable[[], Any]) -> dict[str, tuple[LaunchConfig, ...]]:
    """The configurations of each Triton kernel that a call launches, by the kernel's name."""
    seen: dict[str, tuple[LaunchConfig, ...]] = {}

    def watching(kernel: TritonKernel, configs: tuple[LaunchConfig, ...]) -> Any:
        seen[kernel.name] = configs
        return configs

    with replaced_lookup(watching):
        function()
    return seen


@contextmanager
def chosen_config(name: str, config: LaunchConfig) -> Iterator[None]:
    """The kernel of that name runs with the configuration; others as always."""

    def choosing(kernel: TritonKernel, configs: tuple[LaunchConfig, ...]) -> Any:
        return (config,) if kernel.name == name else configs

    with replaced_lookup(choosing):
        yield


@contextmanager
def replaced_lookup(
    replacement: Callable[[TritonKernel, tuple[LaunchConfig, ...]], Any],
) -> Iterator[None]:
    """`TritonKernel.configs_for`, through which every launch goes, gives what `replacement` makes
    of a kernel and its configurations."""
    original = TritonKernel.configs_for
    TritonKernel.configs_for = (  # type: ignore[method-assign]
        lambda kernel, sm: replacement(kernel, original(kernel, sm))
    )
    try:
        yield
    finally:
        TritonKernel.configs_for = original  # type: ignore[method-assign]
