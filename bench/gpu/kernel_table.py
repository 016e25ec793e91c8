"""The kernel table: every op and backend checked against the reference and then timed, beside
torch's own way; and every configuration of each Triton kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu.device import Device, product_precision
from gpu.rows import FAILED, NOT_RUN, RowFile, rate_fields, timing_fields
from ops.case import Case, Contender, Sizes, gpu_case_makers

from mmad_fast.errors import MmadFastError
from mmad_fast.gpu.triton_kernels import LaunchConfig, TritonKernel

STEP = "kernels"
CONFIG_STEP = "configurations"
CEILING_STEP = "ceilings"
COPY_BYTES = 512 << 20
MATRIX_SIDE = 8192
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


def measure_ceilings(
    device: Device,
    rows: RowFile,
    *,
    num_runs: int = 20,
    copy_bytes: int = COPY_BYTES,
    matrix_side: int = MATRIX_SIDE,
) -> dict[str, float]:
    """GB/s of "copy" (read and written) and GFLOP/s by type of the operands; a row each."""
    import torch

    found: dict[str, float] = {}
    with rows.guarded(CEILING_STEP, "copy"):
        source = torch.zeros(copy_bytes // 4, dtype=torch.float32, device=device.name)
        target = torch.empty_like(source)
        fields = timing_fields(
            device.latencies_ms(
                partial(target.copy_, source), num_warmup=3, num_runs=num_runs, is_cold=False
            )
        )
        found["copy"] = 1e-6 * 2 * copy_bytes / fields["p50_ms"]
        rows.write(CEILING_STEP, "copy", shapes={"bytes": copy_bytes}, gbs=found["copy"], **fields)
        del source, target
    for dtype in ("float32", "tf32", "float16", "bfloat16"):
        with rows.guarded(CEILING_STEP, "matrix product", dtype=dtype), product_precision(dtype):
            storage = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
            shape = (matrix_side, matrix_side)
            a = torch.randn(shape, device=device.name).to(storage)
            b = torch.randn(shape, device=device.name).to(storage)
            out = torch.empty_like(a)
            fields = timing_fields(
                device.latencies_ms(
                    partial(torch.mm, a, b, out=out), num_warmup=3, num_runs=num_runs, is_cold=False
                )
            )
            found[dtype] = 1e-6 * 2.0 * matrix_side**3 / fields["p50_ms"]
            rows.write(
                CEILING_STEP,
                "matrix product",
                dtype=dtype,
                shapes={"side": matrix_side},
                gflops=found[dtype],
                **fields,
            )
            del a, b, out
    return found


def measure_kernels(
    device: Device, rows: RowFile, sizes: Sizes, ceilings: dict[str, float], budget: Budget
) -> None:
    """A row per case and backend, and per configuration of the Triton kernels behind it."""
    for make in gpu_case_makers(sizes, device):
        with rows.guarded(STEP, "inputs"):
            for case in make():
                measure_case(case, device, rows, ceilings, budget)
        release(device)


def release(device: Device) -> None:
    """Gives memory that torch keeps for later back: the next inputs may need it whole."""
    if device.is_cuda:
        import torch

        torch.cuda.empty_cache()


def function_of(
    contender: Contender, case: Case, device: Device, rows: RowFile, step: str
) -> Callable[[], Any] | None:
    """What is called; None, and a row that says why, where there is nothing: it is not built, not
    written, or refuses. On a GPU every backend must run."""
    try:
        return contender.make()
    except (ImportError, AttributeError, MmadFastError) as error:
        rows.write(
            step,
            case.what,
            backend=contender.name,
            status=FAILED if device.is_cuda else NOT_RUN,
            reason=f"{type(error).__name__}: {error}",
            shapes=dict(case.shapes),
            dtype=case.dtype,
        )
        return None


def measure_case(
    case: Case, device: Device, rows: RowFile, ceilings: dict[str, float], budget: Budget
) -> None:
    """A row per contender: ours only where its error is within the bound."""
    for contender in case.contenders:
        facts: dict[str, Any] = {"backend": contender.name, "shapes": dict(case.shapes)}
        facts["dtype"] = case.dtype
        if not contender.is_ours:
            facts["is_baseline"] = True
        function = function_of(contender, case, device, rows, STEP)
        if function is None:
            continue
        with rows.guarded(STEP, case.what, **facts):
            if not contender.is_ours:
                with product_precision("float32"):
                    error = case.error_of(function())
                    fields = timed(function, case, device, ceilings, budget)
                rows.write(STEP, case.what, error=error, **facts, **fields)
                continue
            facts["max_error"] = case.max_error
            error = case.error_of(function())
            if not error <= case.max_error:
                rows.write(STEP, case.what, error=error, **wrong(case, error), **facts)
                continue
            fields = timed(function, case, device, ceilings, budget)
            rows.write(STEP, case.what, error=error, **facts, **fields)
            measure_configs(case, contender.name, function, device, rows, ceilings, budget)


def wrong(case: Case, error: float) -> dict[str, str]:
    """The fields of a row without a time, since the result is beyond its bound."""
    reason = f"error {error:.3g} is above {case.max_error:.3g}; not timed"
    return {"status": FAILED, "reason": reason}


def timed(
    function: Callable[[], Any],
    case: Case,
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
    case: Case,
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
            facts: dict[str, Any] = {
                "backend": backend,
                "kernel": kernel,
                "config": label,
                "is_default": number == 0,
                "shapes": dict(case.shapes),
                "dtype": case.dtype,
            }
            with rows.guarded(CONFIG_STEP, case.what, **facts), chosen_config(kernel, config):
                error = case.error_of(function())
                if not error <= case.max_error:
                    rows.write(CONFIG_STEP, case.what, **wrong(case, error), **facts)
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
                shapes=dict(case.shapes),
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
    replaced: Any = lambda kernel, sm: replacement(kernel, original(kernel, sm))  # noqa: E731
    TritonKernel.configs_for = replaced  # type: ignore[method-assign]
    try:
        yield
    finally:
        TritonKernel.configs_for = original  # type: ignore[method-assign]
