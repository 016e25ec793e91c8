"""Times pixel_mapping against the dense float32 network in the same run, and the GEMM under it
against NumPy's: one JSON line per row.

    env -u OPENBLAS_CORETYPE python bench/ops/bench_pixel_mapping.py [--threads 2] [--pixels 14000]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from op_rows import parse_options, print_rows
from ops.feature_cases import CFM_SIZES, MappingCase, mapping_case

from mmad_fast import _kernels
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


def bench_mapping(options: argparse.Namespace) -> None:
    num_pixels = options.pixels
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
            functions["torch, dense"] = dense_torch(case, options.threads)
        print_rows(
            "pixel_mapping",
            functions,
            lambda got, chosen=some, expected=truth: float(np.abs(got[chosen] - expected).max()),
            shapes={"P": num_pixels, "layers": sizes, "variant": name},
            options=options,
            max_error=2e-6,
        )


def kernel_gemm(a: NDArray[np.float32], packed: Any, c: NDArray[np.float32]) -> NDArray[np.float32]:
    _kernels.gemm(a, packed, c)
    return c


def bench_gemm(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    for m, n, k in GEMM_SIZES:
        a = rng.standard_normal((m, k)).astype(np.float32)
        b = rng.standard_normal((n, k)).astype(np.float32)
        packed = _kernels.PackedMatrix(b, _kernels.best_instruction_set())
        unwritten = np.full((2, m, n), np.nan, np.float32)  # one result per backend
        truth = a[:50].astype(np.float64) @ b.T.astype(np.float64)
        print_rows(
            "gemm",
            {
                "cpu": lambda a=a, packed=packed, c=unwritten[0]: kernel_gemm(a, packed, c),
                "numpy": lambda a=a, b=b, c=unwritten[1]: np.matmul(a, b.T, out=c),
            },
            lambda got, expected=truth: float(np.abs(got[:50] - expected).max()),
            shapes={"m": m, "n": n, "k": k},
            options=options,
            max_error=3e-4,
            flop=2.0 * m * n * k,
        )


def main() -> None:
    options = parse_options(__doc__, runs=7, pixels=14000)
    bench_gemm(options)
    bench_mapping(options)


if __name__ == "__main__":
    main()
