"""What this device can do at best: a large copy and large matrix products, measured in the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpu_device import Device
from gpu_rows import RowFile, timing_fields

COPY_BYTES = 512 << 20
MATRIX_SIDE = 8192
STEP = "ceilings"


@contextmanager
def product_precision(dtype: str) -> Iterator[None]:
    """Float32 products and convolutions of torch in TF32 for "tf32", else in float32."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"  # torch's default is True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


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
    with rows.guarded(STEP, "copy"):
        source = torch.zeros(copy_bytes // 4, dtype=torch.float32, device=device.name)
        target = torch.empty_like(source)
        fields = timing_fields(
            device.latencies_ms(
                lambda a=source, b=target: b.copy_(a),
                num_warmup=3,
                num_runs=num_runs,
                is_cold=False,
            )
        )
        found["copy"] = 1e-6 * 2 * copy_bytes / fields["p50_ms"]
        rows.write(STEP, "copy", shapes={"bytes": copy_bytes}, gbs=found["copy"], **fields)
        del source, target
    for dtype in ("float32", "tf32", "float16", "bfloat16"):
        with rows.guarded(STEP, "matrix product", dtype=dtype), product_precision(dtype):
            storage = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
            shape = (matrix_side, matrix_side)
            a = torch.randn(shape, device=device.name).to(storage)
            b = torch.randn(shape, device=device.name).to(storage)
            out = torch.empty_like(a)
            fields = timing_fields(
                device.latencies_ms(
                    lambda a=a, b=b, out=out: torch.mm(a, b, out=out),
                    num_warmup=3,
                    num_runs=num_runs,
                    is_cold=False,
                )
            )
            found[dtype] = 1e-6 * 2.0 * matrix_side**3 / fields["p50_ms"]
            rows.write(
                STEP,
                "matrix product",
                dtype=dtype,
                shapes={"side": matrix_side},
                gflops=found[dtype],
                **fields,
            )
            del a, b, out
    return found
