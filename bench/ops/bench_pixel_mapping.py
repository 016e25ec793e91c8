"""Times pixel_mapping against the dense float32 network in the same run, and the GEMM under it
against NumPy's: one JSON line per row.

    env -u OPENBLAS_CORETYPE python bench/ops/bench_pixel_mapping.py [--threads 2] [--pixels 14000]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from ops.feature_cases import CFM_SIZES, MappingCase, mapping_case

from mmad_fast import _kernels
from mmad_fast.measure.environment import environment
from mmad_fast.measure.timing import Timing, time_calls
from mmad_fast.ops.pixel_mapping import pixel_mapping

GEMM_SIZES = [(784, 960, 768), (14000, 960, 960), (14000, 1152, 960)]  # (m, n, k)


def dense_torch(case: MappingCase, num_threads: int) -> Callable[[], NDArray[np.float32]]:
    """psi as published, on the same pixels only: dense features, torch layers."""
    import torch

    torch.set_num_threads(num_threads)
    weights = [torch.from_numpy(weight) for weight in case.network.weights]
    biases = [torch.from_numpy(bias) for bias in case.network.biases]

    def psi() -> NDArray[np.float32]:
        functional = torch.nn.functional
        hidden = torch.from_numpy(case.source_rows.apply(case.source_features))
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            hidden = functional.gelu(hidden) if layer else hidden
            hidden = functional.linear(hidden, weight, bias)
        target = torch.from_numpy(case.target_rows.apply(case.target_features))
        difference = functional.normalize(hidden, dim=-1) - functional.normalize(target, dim=-1)
        return difference.norm(dim=-1).numpy()

    return psi


def print_row(what: str, backend: str, shapes: dict, timing: Timing, **facts: Any) -> None:
    row = {
        "what": what,
        "backend": backend,
        "shapes": shapes,
        "dtype": "float32",
        "p50_ms": timing.p50_ms,
        "p95_ms": timing.p95_ms,
        "p99_ms": timing.p99_ms,
        "runs": timing.runs,
        **facts,
    }
    print(json.dumps(row), flush=True)


def bench_mapping(num_pixels: int, threads: int, runs: int, facts: dict) -> None:
    for name, sizes in CFM_SIZES.items():
        case = mapping_case(num_pixels, sizes=sizes, token_grid=28, num_groups=1024, max_entries=32)
        some = np.arange(0, num_pixels, max(1, num_pixels // 100))
        truth = pixel_mapping(
            case.source_features,
            case.source_rows.select(some),
            case.target_features,
            case.target_rows.select(some),
            case.network,
            backend="reference",
        )
        functions = {"cpu": lambda c=case: pixel_mapping(*c.arguments)}
        if find_spec("torch"):
            functions["torch, dense"] = dense_torch(case, threads)
        for backend, function in functions.items():
            error = float(np.abs(function()[some] - truth).max())
            timing = time_calls(function, num_runs=runs)
            shapes = {"P": num_pixels, "layers": sizes, "variant": name}
            common = {"threads": threads, "max_error": error, "environment": facts}
            print_row("pixel_mapping", backend, shapes, timing, **common)


def bench_gemm(threads: int, runs: int, facts: dict) -> None:
    rng = np.random.default_rng(0)
    for m, n, k in GEMM_SIZES:
        a = rng.standard_normal((m, k)).astype(np.float32)
        b = rng.standard_normal((n, k)).astype(np.float32)
        packed = _kernels.PackedMatrix(b, _kernels.best_instruction_set())
        c = np.empty((m, n), np.float32)
        truth = a[:50].astype(np.float64) @ b.T.astype(np.float64)
        functions: dict[str, Callable[[], Any]] = {
            "cpu": lambda a=a, packed=packed, c=c: _kernels.gemm(a, packed, c),
            "numpy": lambda a=a, b=b, c=c: np.matmul(a, b.T, out=c),
        }
        for backend, function in functions.items():
            function()
            error = float(np.abs(c[:50] - truth).max())
            timing = time_calls(function, num_runs=runs)
            common = {"threads": threads, "max_error": error, "environment": facts}
            gflops = 2e-6 * m * n * k / timing.p50_ms
            print_row("gemm", backend, {"m": m, "n": n, "k": k}, timing, gflops=gflops, **common)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=_kernels.num_threads())
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--pixels", type=int, default=14000)
    options = parser.parse_args()
    _kernels.set_num_threads(options.threads)
    facts = environment()
    bench_gemm(options.threads, options.runs, facts)
    bench_mapping(options.pixels, options.threads, options.runs, facts)


if __name__ == "__main__":
    main()
