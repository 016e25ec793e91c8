"""Greedy k-centre selection in Triton. The maths is in README.md.

Algorithm: one launch per selected row. Every program first finds the row that the launch before
left farthest from the selected ones (each program knows the farthest of its own rows), of equals
the one with the lowest index: that is the next selected row. Then it measures its rows against that
row, keeps the smaller distance of each, and leaves the farthest of them for the next launch.
Once the largest distance is 0, launches write -1 and touch no row.

Exact and fast: distances are first measured in float32. Where these cannot rule out that a row of
the tile comes nearer than it was, the tile is measured again in float64, from the caches. That is
rare: of N rows about N / k come nearer to the k-th selected row. So what is kept, and therefore
what is selected, comes from float64 sums, at the price of float32 ones.

Launch: one program per rows_per_program rows, as many programs as fit on the device at a time.

Memory: the rows are read once per selected row, in 16-byte pieces where they allow it; one float32
per row is kept and updated in place; two small buffers of farthest rows alternate, since programs
of one launch must not read what others of it write. Nothing waits for the host.

Accumulation and precision: differences, squares and sums in float32, then float64; distances are
kept as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.triton_kernels import DEFAULT_SM, LaunchConfig, TritonKernel, compute_capability

MAX_ROWS = 2**30
"""Row numbers are int32, also those of the padding behind the last row."""
MAX_PROGRAMS = 1024
"""Most programs of a launch: each of them reads the farthest row that every program of the launch
before has found."""
RESIDENT_WARPS = {torch.float32: 20, torch.float16: 16}
"""Warps that a multiprocessor runs at a time on every architecture. A launch has no more programs
than fit: further ones would start only when the first end."""
INTERPRETED_MULTIPROCESSORS = 1
REPORT_STEPS = 1024
"""Launches between two reports: about as many as a device's queue holds."""


@triton.jit(do_not_specialize=["num_rows", "num_channels", "rows_per_program", "step"])
def _step_kernel(  # type: ignore[no-untyped-def]
    rows,  # (N, C)
    nearest,  # (N) distance to the nearest selected row, inf before the first
    farthest,  # (2, P) the largest of these per program, of this step and the one before
    farthest_at,  # (2, P) its row
    selected,  # (n), -1: no row is left
    num_rows,
    num_channels,
    rows_per_program,  # a multiple of BLOCK_N; 0: select only
    step,
    CHANNEL_MULTIPLE: tl.constexpr,  # divides C
    BLOCK_P: tl.constexpr,  # at least P
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_channels = num_channels // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE  # seen by the compiler
    no_row = 2147483647
    p = tl.arange(0, BLOCK_P)
    num_programs = tl.num_programs(0)
    before = (1 - step % 2) * num_programs + p
    distance_before = tl.load(farthest + before, mask=p < num_programs, other=0.0)
    at_before = tl.load(farthest_at + before, mask=p < num_programs, other=no_row)
    largest = tl.max(distance_before, axis=0)
    center = tl.min(tl.where(distance_before == largest, at_before, no_row), axis=0)
    is_done = largest == 0
    if tl.program_id(0) == 0:
        tl.store(selected + step, tl.where(is_done, -1, center).to(tl.int64))
    center_row = rows + tl.minimum(center, num_rows - 1).to(tl.int64) * num_channels

    # What float32 sums of C squares can be off by, twice over; below 1e-30 they may lose all.
    slack = 1.0 + (num_channels + 8) * 1.2e-7
    first = tl.program_id(0) * rows_per_program
    last = tl.where(is_done, first, tl.minimum(first + rows_per_program, num_rows))
    lane_largest = tl.zeros([BLOCK_N], tl.float32)
    lane_at = tl.full([BLOCK_N], no_row, tl.int32)
    for tile in range(first, last, BLOCK_N):
        n = tile + tl.arange(0, BLOCK_N)
        is_row = n < num_rows
        kept = tl.load(nearest + n, mask=is_row, other=0.0)
        # Rows beyond the last are read as the last and left out at the end.
        row = rows + tl.minimum(n, num_rows - 1).to(tl.int64)[:, None] * num_channels
        total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
        for begin in range(0, num_channels, BLOCK_C):
            channel = begin + tl.arange(0, BLOCK_C)[None, :]
            is_channel = channel < num_channels
            value = tl.load(row + channel, mask=is_channel, other=0.0).to(tl.float32)
            other = tl.load(center_row + channel, mask=is_channel, other=0.0).to(tl.float32)
            total += (value - other) * (value - other)
        is_farther = tl.sum(total, axis=1) > kept * kept * slack + 1e-30  # false with NaN
        may_come_nearer = (kept > 0) & (is_farther == 0)
        if tl.max(may_come_nearer.to(tl.int32), axis=0) > 0:
            EXACT_C: tl.constexpr = BLOCK_C // 4  # float64 takes many registers
            exact = tl.zeros([BLOCK_N, EXACT_C], tl.float64)
            for begin in range(0, num_channels, EXACT_C):
                channel = begin + tl.arange(0, EXACT_C)[None, :]
                is_channel = channel < num_channels
                value = tl.load(row + channel, mask=is_channel, other=0.0).to(tl.float64)
                other = tl.load(center_row + channel, mask=is_channel, other=0.0).to(tl.float64)
                exact += (value - other) * (value - other)
            squared = tl.sum(exact, axis=1)
            distance = tl.sqrt(squared).to(tl.float32)
            # Rows that are not finite are never selected.
            distance = tl.where(squared < float("inf"), distance, 0.0)
            kept = tl.minimum(kept, distance)
            tl.store(nearest + n, kept, mask=is_row)
        is_larger = kept > lane_largest
        lane_largest = tl.where(is_larger, kept, lane_largest)
        lane_at = tl.where(is_larger, n, lane_at)
    largest = tl.max(lane_largest, axis=0)
    now = (step % 2) * num_programs + tl.program_id(0)
    tl.store(farthest + now, largest)
    at = tl.min(tl.where(lane_largest == largest, lane_at, no_row), axis=0)
    tl.store(farthest_at + now, at)


def _config(num_warps: int, n: int, c: int) -> LaunchConfig:
    return LaunchConfig(num_warps, 1, {"BLOCK_N": n, "BLOCK_C": c})


Configs = Mapping[int, tuple[LaunchConfig, ...]]
# A tile is as wide as all threads of a program read at a time: then the row that all others are
# measured against is spread over the threads as these are, and nothing is exchanged between them.
_FLOAT_CONFIGS: Configs = {DEFAULT_SM: (_config(4, 4, 512), _config(2, 4, 256))}
_HALF_CONFIGS: Configs = {DEFAULT_SM: (_config(2, 4, 512), _config(1, 4, 256))}
_TRITON_TYPES = {torch.float32: "fp32", torch.float16: "fp16"}


def _kernel(triton_type: str, multiple: int) -> TritonKernel:
    return TritonKernel(
        name=f"k_center_greedy.step.{triton_type}.c{multiple}",
        function="_step_kernel",
        arguments={
            "rows": f"*{triton_type}:16",
            "nearest": "*fp32:16",
            "farthest": "*fp32:16",
            "farthest_at": "*i32:16",
            "selected": "*i64:16",
            "num_rows": "i32",
            "num_channels": "i32",
            "rows_per_program": "i32",
            "step": "i32",
        },
        configs=_FLOAT_CONFIGS if triton_type == "fp32" else _HALF_CONFIGS,
        constants={"CHANNEL_MULTIPLE": multiple, "BLOCK_P": MAX_PROGRAMS},
    )


_KERNELS = {
    (dtype, multiple): _kernel(triton_type, multiple)
    for dtype, triton_type in _TRITON_TYPES.items()
    for multiple in (16 // dtype.itemsize, 1)
}
KERNELS: tuple[TritonKernel, ...] = tuple(_KERNELS.values())


def k_center_greedy(
    rows: torch.Tensor,
    num_samples: int,
    start: int = 0,
    report: Callable[[int], None] = lambda num_selected: None,
) -> torch.Tensor:
    """(n,) int64: the selected rows in the order of their selection.

    n is the smaller of num_samples and the number of distinct rows. Rows with NaN or infinity are
    never selected; a start that is one stays alone. Waits for the device at the end only, for n.

    Args:
        rows: (N, C) float32 or float16, contiguous, N and C at least 1.
        num_samples: At least 1.
        start: The first selected row, in 0..N-1.
        report: Called now and then with the number of selections handed to the device, which
            has a limited queue of them.

    Raises:
        InvalidInputError: there are more than MAX_ROWS rows.
    """
    if len(rows) > MAX_ROWS:
        raise InvalidInputError(
            f"rows has {len(rows)} rows; on a device at most {MAX_ROWS} can be selected from: "
            "pass them as a NumPy array"
        )
    selected = torch.empty(min(num_samples, len(rows)), dtype=torch.int64, device=rows.device)
    nearest = torch.full((len(rows),), torch.inf, dtype=torch.float32, device=rows.device)
    _launch_steps(rows, nearest, selected, start, report)
    return selected[: int((selected >= 0).sum())]


def _launch_steps(
    rows: torch.Tensor,
    nearest: torch.Tensor,
    selected: torch.Tensor,
    start: int,
    report: Callable[[int], None],
) -> None:
    """All steps, without waiting for them; `selected` ends in -1 where no row is left."""
    (num_rows, num_channels), num_samples = rows.shape, len(selected)
    multiple = 16 // rows.dtype.itemsize
    kernel = _KERNELS[rows.dtype, multiple if num_channels % multiple == 0 else 1]
    options = kernel.launch_options(compute_capability(rows))
    max_programs = _max_programs(rows, options["num_warps"])
    num_tiles = triton.cdiv(num_rows, options["BLOCK_N"])
    rows_per_program = triton.cdiv(num_tiles, max_programs) * options["BLOCK_N"]
    num_programs = triton.cdiv(num_rows, rows_per_program)
    farthest = torch.zeros((2, num_programs), dtype=torch.float32, device=rows.device)
    farthest_at = torch.zeros((2, num_programs), dtype=torch.int32, device=rows.device)
    farthest[1, 0] = torch.inf  # as if a step before the first had found the start
    farthest_at[1, 0] = start
    with torch.cuda.device_of(rows):
        for step in range(num_samples):
            is_last = step + 1 == num_samples
            _step_kernel[(num_programs,)](
                rows,
                nearest,
                farthest,
                farthest_at,
                selected,
                num_rows,
                num_channels,
                0 if is_last else rows_per_program,
                step,
                **options,
            )
            if is_last or (step + 1) % REPORT_STEPS == 0:
                report(step + 1)


def _max_programs(rows: torch.Tensor, num_warps: int) -> int:
    """As many as run on the device at a time."""
    num_multiprocessors = INTERPRETED_MULTIPROCESSORS
    if rows.is_cuda:
        properties = torch.cuda.get_device_properties(rows.device)
        num_multiprocessors = properties.multi_processor_count
    return min(MAX_PROGRAMS, RESIDENT_WARPS[rows.dtype] // num_warps * num_multiprocessors)
