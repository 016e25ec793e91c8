"""The kernel table: every op and backend checked against the reference and then timed, beside
torch's own way; and every configuration of each Triton kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu.device import Device, product_precision
from gpu.rows import FAILED, NOT_RUN, RowFile, one_line, rate_fields
from ops.case import Case, Contender, Sizes, gpu_case_makers
from settings import timing_fields

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

    num_runs: int
    row_s: float
    num_configs: int = 100

    def runs_for(self, call_ms: float) -> int:
        return max(MIN_RUNS, min(self.num_runs, int(1e3 * self.row_s / call_ms)))


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

    def timing(call: Callable[[], object]) -> dict[str, Any]:
        return timing_fields(
            device.latencies_ms(call, num_warmup=3, num_runs=num_runs, is_cold=False)
        )

    with rows.guarded(CEILING_STEP, "copy", shapes={"bytes": copy_bytes}) as write:
        source = torch.zeros(copy_bytes // 4, dtype=torch.float32, device=device.name)
        target = torch.empty_like(source)
        fields = timing(partial(target.copy_, source))
        found["copy"] = 1e-6 * 2 * copy_bytes / fields["p50_ms"]
        write(gbs=found["copy"], **fields)
        del source, target
    for dtype in ("float32", "tf32", "float16", "bfloat16"):
        facts: dict[str, Any] = {"dtype": dtype, "shapes": {"side": matrix_side}}
        guarded = rows.guarded(CEILING_STEP, "matrix product", **facts)
        with guarded as write, product_precision(dtype):
            storage = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
            shape = (matrix_side, matrix_side)
            a = torch.randn(shape, device=device.name).to(storage)
            b = torch.randn(shape, device=device.name).to(storage)
            out = torch.empty_like(a)
            fields = timing(partial(torch.mm, a, b, out=out))
            found[dtype] = 1e-6 * 2.0 * matrix_side**3 / fields["p50_ms"]
            write(gflops=found[dtype], **fields)
            del a, b, out
    return found


def measure_kernels(
    device: Device, rows: RowFile, sizes: Sizes, ceilings: dict[str, float], budget: Budget
) -> None:
    """A row per case and backend, and per configuration of the Triton kernels behind it."""
    import torch

    for make in gpu_case_makers(sizes, device):
        with rows.guarded(STEP, "inputs"):
            for case in make():
                measure_case(case, device, rows, ceilings, budget)
        if device.is_cuda:  # the next inputs may need the memory whole
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
            reason=one_line(error),
            **case.facts,
        )
        return None


def measure_case(
    case: Case, device: Device, rows: RowFile, ceilings: dict[str, float], budget: Budget
) -> None:
    """A row per contender: ours only where its error is within the bound."""
    for contender in case.contenders:
        function = function_of(contender, case, device, rows, STEP)
        if function is None:
            continue
        facts = {"max_error": case.max_error} if contender.is_ours else {"is_baseline": True}
        precision = nullcontext() if contender.is_ours else product_precision("float32")
        with rows.guarded(STEP, case.what, backend=contender.name, **facts, **case.facts) as write:
            with precision:
                error = case.error_of(function())
                if contender.is_ours and not error <= case.max_error:
                    write(error=error, **wrong(case, error))
                    continue
                write(error=error, **timed(function, case, device, ceilings, budget))
            if contender.is_ours:
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
        facts = {"backend": backend, "kernel": kernel, **case.facts}
        default = config_label(configs[0])
        found: dict[str, float] = {}
        for config in configs[: budget.num_configs]:
            label = config_label(config)
            names: dict[str, Any] = {"config": label, "is_default": label == default}
            guarded = rows.guarded(CONFIG_STEP, case.what, **names, **facts)
            with guarded as write, chosen_config(kernel, config):
                error = case.error_of(function())
                if not error <= case.max_error:
                    write(**wrong(case, error))
                    continue
                fields = timed(function, case, device, ceilings, budget)
                write(error=error, **fields)
                found[label] = fields["p50_ms"]
        if found:
            best = min(found, key=lambda label: found[label])
            facts |= {"config": best, "is_default": best == default, "p50_ms": found[best]}
            facts["default_p50_ms"] = found.get(default)
            rows.write(CONFIG_STEP, f"{case.what}: fastest", **facts)


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
