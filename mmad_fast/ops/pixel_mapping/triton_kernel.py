"""psi on a CUDA device, in Triton. The maths is in README.md.

Algorithm
    1. `token_map_kernel`, a plain matrix product, runs twice: the first weight times the few
       tokens, and the rotation that makes the last weight triangular times the few targets.
    2. `pixel_kernel` runs once, for the pixels. A program takes strips of BLOCK_P pixels through
       the whole network: expand the mapped tokens, bias, GELU; the middle layers; the last layer,
       whose outputs are compared with the expanded target BLOCK_C channels at a time. Of each
       such part stay three numbers per pixel (how a multiple of the target fits the prediction),
       which merge into psi.

Launch shape
    token_map_kernel: (tokens / BLOCK_T, outputs / BLOCK_N). pixel_kernel: as many programs as run
    at once (PROGRAMS_PER_MULTIPROCESSOR times the multiprocessors, or one per strip where there
    are fewer); program i takes the strips i, i + programs, ...

Memory layout
    All matrices are row-major and padded with zeros, so that no loop over channels has a remainder
    (device_network.py); rows start at multiples of 16 bytes. A program has scratch of its own in
    global memory: two slabs of BLOCK_P x H activations, which the layers read and write in turn, a
    part of BLOCK_P x BLOCK_N predictions, and 3 x BLOCK_P numbers per part of the channels. Triton
    can address neither registers nor shared memory; what a program writes there it reads again
    soon, for the most part from the second level cache. The scratch grows with the device and not
    with the pixels. A barrier stands between writing scratch and reading it, and between reading
    it and writing it again.

Accumulation
    float32. The tensor cores of "float32" start from zero every BLOCK_K products; their sums are
    added by ordinary additions, which round to nearest as the tensor cores do not.

Precision
    "float32": three TF32 products per product (input_precision "tf32x3"), which keeps the error of
    float32: the tests emulate its roundings. On sm_75, whose tensor cores Triton does not use,
    plain float32. "float16" and "bfloat16": weights and activations have that type; tokens behind
    the first weight, targets, predictions and everything after them are float32.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.triton_kernels import DEFAULT_SM, LaunchConfig, TritonKernel
from mmad_fast.ops.pixel_mapping.device_network import (
    DEPTH_MULTIPLE,
    PRECISIONS,
    DeviceMappingNetwork,
    device_network,
)

__all__ = ["KERNELS", "DeviceMappingNetwork", "device_network", "pixel_mapping"]

PROGRAMS_PER_MULTIPROCESSOR = 2
"""128 threads of up to 255 registers: two programs fill a multiprocessor, and one multiplies while
the other expands or waits at a barrier. Programs beyond those that fit run later, and only cost
scratch."""

INTERPRETED_PROGRAMS = 2
INTERPRETED_SM = 80

_NORM_FLOOR = tl.constexpr(1e-12)
_SMALLEST_SQUARE = tl.constexpr(1e-36)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _gelu(x):  # type: ignore[no-untyped-def]
    return 0.5 * x * (1.0 + tl.math.erf(x * _SQRT_HALF))


@triton.jit
def _dot(a, b, accumulator, TF32X3: tl.constexpr):  # type: ignore[no-untyped-def]
    if _INTERPRETED:  # would multiply the bits of bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="tf32x3" if TF32X3 else "ieee")


@triton.jit(do_not_specialize=["num_tokens"])
def token_map_kernel(  # type: ignore[no-untyped-def]
    features,  # (T, I) float32
    weight,  # (O, I)
    mapped,  # (T, O) float32
    num_tokens,
    in_width,
    out_width,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32X3: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    outputs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    rows = tl.minimum(tokens, num_tokens - 1)
    feature_tile = features + rows[:, None] * in_width + depth[None, :]
    weight_tile = weight + outputs[:, None] * in_width + depth[None, :]
    accumulator = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for k in range(0, in_width, BLOCK_K):
        a = tl.load(feature_tile + k).to(weight.dtype.element_ty)
        b = tl.load(weight_tile + k)
        accumulator = _dot(a, tl.trans(b), accumulator, TF32X3)
    tl.store(
        mapped + tokens[:, None] * out_width + outputs[None, :],
        accumulator,
        mask=(tokens < num_tokens)[:, None],
    )


@triton.jit
def _row_entries(offsets, pixels, num_pixels, num_entries):  # type: ignore[no-untyped-def]
    """First entry and number of entries of each pixel's row: inside the entries whatever the
    offsets hold, none behind the last pixel."""
    inside = pixels < num_pixels
    begin = tl.load(offsets + pixels, mask=inside, other=0)
    end = tl.load(offsets + pixels + 1, mask=inside, other=0)
    begin = tl.minimum(tl.maximum(begin, 0), num_entries).to(tl.int32)
    end = tl.minimum(tl.maximum(end, 0), num_entries).to(tl.int32)
    return begin, tl.maximum(end - begin, 0)


@triton.jit
def _expand(features, width, num_features, columns, values, begin, count, channels):  # type: ignore[no-untyped-def]
    """(BLOCK_P, BLOCK_C): some channels of the weighted sums of feature rows."""
    expanded = tl.zeros([begin.shape[0], channels.shape[0]], tl.float32)
    for k in range(tl.max(count, 0)):
        inside = k < count
        column = tl.load(columns + begin + k, mask=inside, other=0)
        column = tl.minimum(tl.maximum(column, 0), num_features - 1)
        value = tl.load(values + begin + k, mask=inside, other=0.0)
        row = tl.load(
            features + column[:, None] * width + channels[None, :], mask=inside[:, None], other=0.0
        )
        expanded += value[:, None] * row
    return expanded


@triton.jit
def _multiply(  # type: ignore[no-untyped-def]
    activations,
    weight,
    width,
    first,
    outputs,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32X3: tl.constexpr,
):
    """(BLOCK_P, BLOCK_N): some outputs of a layer, from the first input whose weights are not 0."""
    depth = tl.arange(0, BLOCK_K)
    activation_tile = activations + tl.arange(0, BLOCK_P)[:, None] * width + depth[None, :]
    weight_tile = weight + outputs[:, None] * width + depth[None, :]
    accumulator = tl.zeros([BLOCK_P, outputs.shape[0]], tl.float32)
    for k in range(first, width, BLOCK_K):
        a = tl.load(activation_tile + k)
        b = tl.load(weight_tile + k)
        accumulator = _dot(a, tl.trans(b), accumulator, TF32X3)
    return accumulator


@triton.jit
def _store_fit(fit, prediction, target, BLOCK_P: tl.constexpr):  # type: ignore[no-untyped-def]
    """How a multiple of the target fits a part of the prediction: the target's squared norm, the
    factor, the squared norm of what remains."""
    squared = tl.sum(target * target, 1)
    is_zero = ~(squared > _SMALLEST_SQUARE)
    slope = tl.sum(prediction * target, 1) / tl.where(is_zero, 1.0, squared)
    squared = tl.where(is_zero, 0.0, squared)
    slope = tl.where(is_zero, 0.0, slope)
    remainder = prediction - slope[:, None] * target
    rows = fit + tl.arange(0, BLOCK_P)
    tl.store(rows, squared)
    tl.store(rows + BLOCK_P, slope)
    tl.store(rows + 2 * BLOCK_P, tl.sum(remainder * remainder, 1))


@triton.jit
def _merge_fits(fits, num_parts, BLOCK_P: tl.constexpr):  # type: ignore[no-untyped-def]
    """The fit of the whole prediction, from those of its parts."""
    rows = fits + tl.arange(0, BLOCK_P)
    squared = tl.zeros([BLOCK_P], tl.float32)
    slope = tl.zeros([BLOCK_P], tl.float32)
    residual = tl.zeros([BLOCK_P], tl.float32)
    for _ in range(num_parts):
        part_squared = tl.load(rows)
        part_slope = tl.load(rows + BLOCK_P)
        total = squared + part_squared
        divisor = tl.where(total > 0, total, 1.0)
        share, part_share = squared / divisor, part_squared / divisor
        gap = part_slope - slope
        residual += tl.load(rows + 2 * BLOCK_P) + gap * (squared * part_share) * gap
        slope = slope * share + part_slope * part_share  # the slope of a faint part may be huge
        squared = total
        rows += 3 * BLOCK_P
    return squared, slope, residual


@triton.jit
def _distance(squared, slope, residual):  # type: ignore[no-untyped-def]
    """psi from the fit of the prediction by the target."""
    target_norm = tl.sqrt(squared)
    along = slope * target_norm
    norm = tl.sqrt(residual + along * along)
    # 1 - cos without a difference of nearly equal numbers: r^2 / (n (n + t)) where the cosine t / n
    # is positive.
    divisor = tl.where(norm > 0, norm, 1.0)
    gap = tl.where(along > 0, residual / divisor / (divisor + tl.abs(along)), 1.0 - along / divisor)
    length = norm / tl.maximum(norm, _NORM_FLOOR)
    target_length = target_norm / tl.maximum(target_norm, _NORM_FLOOR)
    difference = length - target_length
    return tl.sqrt(difference * difference + 2.0 * length * target_length * gap)


@triton.jit(
    do_not_specialize=[
        "num_pixels",
        "num_tokens",
        "num_source_entries",
        "num_targets",
        "num_target_entries",
        "num_middle",
    ],
    do_not_specialize_on_alignment=[
        "source_offsets",
        "source_columns",
        "source_values",
        "target_offsets",
        "target_columns",
        "target_values",
        "psi",
    ],
)
def pixel_kernel(  # type: ignore[no-untyped-def]
    mapped,  # (T, R) float32: the tokens behind the first weight
    source_offsets,
    source_columns,
    source_values,
    rotated,  # (U, O) float32: the rotated targets
    target_offsets,
    target_columns,
    target_values,
    middle_weights,  # (num_middle, R, H)
    last_weight,  # (O, H), 0 below the diagonal
    biases,  # (1 + num_middle, R) float32
    last_bias,  # (O,) float32
    slabs,  # (programs, 2, BLOCK_P, H)
    parts,  # (programs, BLOCK_P, BLOCK_N) float32
    fits,  # (programs, O / BLOCK_C, 3, BLOCK_P) float32
    psi,  # (P,) float32
    num_pixels,
    num_tokens,
    num_source_entries,
    num_targets,
    num_target_entries,
    num_middle,
    hidden,  # H
    hidden_rows,  # R
    out_width,  # O
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TF32X3: tl.constexpr,
):
    program = tl.program_id(0)
    strip_rows = tl.arange(0, BLOCK_P)
    slab_size = BLOCK_P * hidden
    slabs += program.to(tl.int64) * (2 * slab_size)
    parts += program * (BLOCK_P * BLOCK_N)
    fits += program * (out_width // BLOCK_C * 3 * BLOCK_P)
    for strip in range(program, tl.cdiv(num_pixels, BLOCK_P), tl.num_programs(0)):
        pixels = strip * BLOCK_P + strip_rows

        begin, count = _row_entries(source_offsets, pixels, num_pixels, num_source_entries)
        for n in range(0, hidden, BLOCK_C):
            channels = n + tl.arange(0, BLOCK_C)
            x = _expand(
                mapped,
                hidden_rows,
                num_tokens,
                source_columns,
                source_values,
                begin,
                count,
                channels,
            )
            x = _gelu(x + tl.load(biases + channels)[None, :])
            tl.store(
                slabs + strip_rows[:, None] * hidden + channels[None, :],
                x.to(slabs.dtype.element_ty),
            )
        tl.debug_barrier()

        for layer in range(num_middle):
            read = slabs + (layer % 2) * slab_size
            write = slabs + ((layer + 1) % 2) * slab_size
            weight = middle_weights + layer * hidden_rows * hidden
            for n in range(0, hidden, BLOCK_N):
                outputs = n + tl.arange(0, BLOCK_N)
                y = _multiply(read, weight, hidden, 0, outputs, BLOCK_P, BLOCK_K, TF32X3)
                y = _gelu(y + tl.load(biases + (layer + 1) * hidden_rows + outputs)[None, :])
                tl.store(
                    write + strip_rows[:, None] * hidden + outputs[None, :],
                    y.to(slabs.dtype.element_ty),
                    mask=(outputs < hidden)[None, :],
                )
            tl.debug_barrier()

        read = slabs + (num_middle % 2) * slab_size
        for n in range(0, out_width, BLOCK_N):
            outputs = n + tl.arange(0, BLOCK_N)
            y = _multiply(read, last_weight, hidden, n, outputs, BLOCK_P, BLOCK_K, TF32X3)
            y += tl.load(last_bias + outputs)[None, :]
            tl.store(parts + strip_rows[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :], y)
            tl.debug_barrier()
            begin, count = _row_entries(target_offsets, pixels, num_pixels, num_target_entries)
            for c in range(0, BLOCK_N, BLOCK_C):
                channels = c + tl.arange(0, BLOCK_C)
                target = _expand(
                    rotated + n,
                    out_width,
                    num_targets,
                    target_columns,
                    target_values,
                    begin,
                    count,
                    channels,
                )
                prediction = tl.load(parts + strip_rows[:, None] * BLOCK_N + channels[None, :])
                fit = fits + (n + c) // BLOCK_C * (3 * BLOCK_P)
                _store_fit(fit, prediction, target, BLOCK_P)
            tl.debug_barrier()
        squared, slope, residual = _merge_fits(fits, out_width // BLOCK_C, BLOCK_P)
        tl.store(psi + pixels, _distance(squared, slope, residual), mask=pixels < num_pixels)
        tl.debug_barrier()


def pixel_mapping(
    source_features: torch.Tensor,
    source_offsets: torch.Tensor,
    source_columns: torch.Tensor,
    source_values: torch.Tensor,
    target_features: torch.Tensor,
    target_offsets: torch.Tensor,
    target_columns: torch.Tensor,
    target_values: torch.Tensor,
    network: DeviceMappingNetwork,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """psi (P,) float32 of every pixel between the network's prediction and the target feature.

    All tensors are contiguous and lie on the network's device. Runs on torch's current stream and
    does not wait for it.

    Args:
        source_features: (T, Cs) float32.
        source_offsets: (P + 1,) int64: rows over T, as in SparseRows, but columns may repeat
            within a row. Offsets outside the entries are clamped.
        source_columns: (nnz,) int32, clamped to [0, T).
        source_values: (nnz,) float32.
        target_features: (U, Ct) float32.
        target_offsets: (P + 1,) int64: rows over U.
        target_columns: (nnz,) int32, clamped to [0, U).
        target_values: (nnz,) float32.
        network: Cs -> Ct, from `device_network`.
        out: (P,) float32, takes the result; None: a new tensor.

    Raises:
        InvalidInputError: features of another width than the network's.
    """
    found = (source_features.shape[1], target_features.shape[1])
    if found != (network.in_channels, network.out_channels):
        raise InvalidInputError(
            f"the features have {found[0]} and {found[1]} channels, but the network maps "
            f"{network.in_channels} channels to {network.out_channels}"
        )
    device = source_features.device
    num_pixels = len(source_offsets) - 1
    psi = torch.empty(num_pixels, dtype=torch.float32, device=device) if out is None else out
    if num_pixels == 0:
        return psi
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        mapped = _map_tokens(source_features, network.first_weight, network.precision)
        rotated = _map_tokens(target_features, network.rotation, network.precision)
        _map_pixels(
            (mapped, source_offsets, source_columns, source_values),
            (rotated, target_offsets, target_columns, target_values),
            network,
            psi,
        )
    return psi


def _map_tokens(features: torch.Tensor, weight: torch.Tensor, precision: str) -> torch.Tensor:
    """features @ weight.T (T, O) float32."""
    missing = weight.shape[1] - features.shape[1]
    if missing or features.data_ptr() % 16:
        features = torch.nn.functional.pad(features, (0, missing)).clone()
    mapped = torch.empty((len(features), len(weight)), device=weight.device)
    if len(features):
        config = _TOKEN_MAP[precision].configs_for(_compute_capability(weight.device))[0]
        tile = config.constants
        grid = (triton.cdiv(len(features), tile["BLOCK_T"]), len(weight) // tile["BLOCK_N"])
        token_map_kernel[grid](
            features,
            weight,
            mapped,
            len(features),
            weight.shape[1],
            len(weight),
            **tile,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return mapped


def _map_pixels(
    source: tuple[torch.Tensor, ...],
    target: tuple[torch.Tensor, ...],
    network: DeviceMappingNetwork,
    psi: torch.Tensor,
) -> None:
    config = _PIXELS[network.precision].configs_for(_compute_capability(psi.device))[0]
    tile = config.constants
    num_middle, hidden_rows = len(network.middle_weights), network.biases.shape[1]
    out_width, hidden = network.last_weight.shape
    strips = triton.cdiv(len(psi), tile["BLOCK_P"])
    programs = min(strips, _resident_programs(psi.device))
    pixel_kernel[(programs,)](
        *source,
        *target,
        network.middle_weights,
        network.last_weight,
        network.biases,
        network.last_bias,
        psi.new_empty((programs, 2, tile["BLOCK_P"], hidden), dtype=network.last_weight.dtype),
        psi.new_empty((programs, tile["BLOCK_P"], tile["BLOCK_N"])),
        psi.new_empty((programs, out_width // tile["BLOCK_C"], 3, tile["BLOCK_P"])),
        psi,
        len(psi),
        len(source[0]),
        len(source[2]) if len(source[0]) else 0,
        len(target[0]),
        len(target[2]) if len(target[0]) else 0,
        num_middle,
        hidden,
        hidden_rows,
        out_width,
        **tile,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _compute_capability(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_SM
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _resident_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    properties = torch.cuda.get_device_properties(device)
    return PROGRAMS_PER_MULTIPROCESSOR * properties.multi_processor_count


_TRITON_TYPES = dict(zip(PRECISIONS, ("fp32", "fp16", "bf16"), strict=True))


def _token_config(
    block_t: int, block_n: int, block_k: int, warps: int, stages: int, *, tf32x3: bool = False
) -> LaunchConfig:
    return LaunchConfig(
        warps,
        stages,
        {"BLOCK_T": block_t, "BLOCK_N": block_n, "BLOCK_K": block_k, "TF32X3": int(tf32x3)},
    )


def _pixel_config(
    block_p: int, block_n: int, block_k: int, warps: int, stages: int, *, tf32x3: bool = False
) -> LaunchConfig:
    return LaunchConfig(
        warps,
        stages,
        {
            "BLOCK_P": block_p,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
            "BLOCK_C": DEPTH_MULTIPLE,
            "TF32X3": int(tf32x3),
        },
    )


# No tensor cores in Triton on sm_75: short loops over BLOCK_K keep the operands in registers.
_TOKEN_CONFIGS: dict[str, dict[int, tuple[LaunchConfig, ...]]] = {
    "float32": {
        DEFAULT_SM: (_token_config(64, 64, 16, 4, 4, tf32x3=True),),
        90: (_token_config(64, 64, 32, 4, 3, tf32x3=True),),
        100: (_token_config(64, 64, 32, 4, 3, tf32x3=True),),
        75: (_token_config(64, 64, 16, 4, 2),),
    },
    "half": {
        DEFAULT_SM: (_token_config(64, 64, 64, 4, 3),),
        120: (_token_config(64, 64, 32, 4, 4),),
        75: (_token_config(64, 64, 16, 4, 2),),
    },
}

# Two programs of the first configuration fit into every multiprocessor.
_PIXEL_CONFIGS: dict[str, dict[int, tuple[LaunchConfig, ...]]] = {
    "float32": {
        DEFAULT_SM: (
            _pixel_config(64, 64, 16, 4, 4, tf32x3=True),
            _pixel_config(64, 128, 32, 8, 3, tf32x3=True),
        ),
        90: (
            _pixel_config(64, 64, 32, 4, 3, tf32x3=True),
            _pixel_config(64, 128, 32, 8, 3, tf32x3=True),
        ),
        100: (
            _pixel_config(64, 64, 32, 4, 3, tf32x3=True),
            _pixel_config(64, 128, 32, 8, 3, tf32x3=True),
        ),
        75: (_pixel_config(64, 64, 16, 4, 2),),
    },
    "half": {
        DEFAULT_SM: (_pixel_config(64, 128, 64, 4, 3), _pixel_config(128, 128, 64, 8, 3)),
        # Triton asks for all of a multiprocessor's cache as shared memory where a program takes
        # more than 48 KiB, and little is left for what the strips read again: on an H100 that
        # took 1.5 to 1.7 times as long as 48 KiB do.
        90: (_pixel_config(64, 128, 32, 4, 4), _pixel_config(64, 128, 64, 4, 3)),
        75: (_pixel_config(64, 64, 16, 4, 2), _pixel_config(32, 64, 16, 4, 2)),
    },
}


def _token_map(precision: str) -> TritonKernel:
    weight = _TRITON_TYPES[precision]
    return TritonKernel(
        f"pixel_mapping.token_map.{precision}",
        "token_map_kernel",
        {
            "features": "*fp32:16",
            "weight": f"*{weight}:16",
            "mapped": "*fp32:16",
            "num_tokens": "i32",
            "in_width": "i32:16",
            "out_width": "i32:16",
        },
        _TOKEN_CONFIGS.get(precision, _TOKEN_CONFIGS["half"]),
        uses_tensor_cores=True,
    )


def _pixels(precision: str) -> TritonKernel:
    weight = _TRITON_TYPES[precision]
    rows = {"offsets": "*i64", "columns": "*i32", "values": "*fp32"}
    return TritonKernel(
        f"pixel_mapping.pixels.{precision}",
        "pixel_kernel",
        {
            "mapped": "*fp32:16",
            **{f"source_{name}": kind for name, kind in rows.items()},
            "rotated": "*fp32:16",
            **{f"target_{name}": kind for name, kind in rows.items()},
            "middle_weights": f"*{weight}:16",
            "last_weight": f"*{weight}:16",
            "biases": "*fp32:16",
            "last_bias": "*fp32:16",
            "slabs": f"*{weight}:16",
            "parts": "*fp32:16",
            "fits": "*fp32:16",
            "psi": "*fp32",
            **dict.fromkeys(
                (
                    "num_pixels",
                    "num_tokens",
                    "num_source_entries",
                    "num_targets",
                    "num_target_entries",
                    "num_middle",
                ),
                "i32",
            ),
            **dict.fromkeys(("hidden", "hidden_rows", "out_width"), "i32:16"),
        },
        _PIXEL_CONFIGS.get(precision, _PIXEL_CONFIGS["half"]),
        uses_tensor_cores=True,
    )


_TOKEN_MAP = {precision: _token_map(precision) for precision in PRECISIONS}
_PIXELS = {precision: _pixels(precision) for precision in PRECISIONS}

KERNELS: tuple[TritonKernel, ...] = (*_TOKEN_MAP.values(), *_PIXELS.values())
"""Every specialisation that runs: one per precision."""
