"""What each kernel has to compute and to move, as formulas of its shapes.

Used twice: by the cost model (times on cards from data sheets) and by on_gpu.py (achieved FLOP/s
and bandwidth from measured times). A multiply-add counts as 2 FLOP. Bytes are the least traffic
with device memory: each input read once, each output written once, unless a function says more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

FLOAT_BYTES = 4
INDEX_BYTES = 8
OPERAND_BYTES = {"float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}

DISTANCE_FLOP = 8
"""A squared distance of points: three differences, three squares, two sums."""
GELU_FLOP = 14
"""0.5 x (1 + erf(x / sqrt 2)): a polynomial of degree 5, an exponential, a few products."""
POOLING_WINDOW = 16
"""Points under an output pixel: 3 x 3 averages under windows of up to 2 x 2."""
BILINEAR_ENTRIES = 4
EMBEDDER = (128, 256, 512, 384)
"""Channels of Point-MAE's mini-PointNet: first hidden, summary, second hidden, token."""


@dataclass(frozen=True)
class Work:
    """What one launch has to do.

    Attributes:
        name: The kernel or step.
        matrix_flop: In products of matrices, which tensor cores can do.
        plain_flop: All other arithmetic, float32 on the CUDA cores.
        device_bytes: Traffic with device memory.
        l2_bytes: Traffic with the second level cache, where it is much more than that.
    """

    name: str
    matrix_flop: float = 0.0
    plain_flop: float = 0.0
    device_bytes: float = 0.0
    l2_bytes: float = 0.0

    @property
    def flop(self) -> float:
        return self.matrix_flop + self.plain_flop


def farthest_point_sampling(num_points: int, num_samples: int) -> Work:
    """Every step measures every point against the last sample, keeps the minimum and looks for the
    largest: pruning, which skips most of it, is left out."""
    return Work(
        "farthest_point_sampling",
        plain_flop=num_samples * num_points * (DISTANCE_FLOP + 2),
        device_bytes=num_points * 3 * FLOAT_BYTES + num_samples * INDEX_BYTES,
    )


def knn_grouping(num_points: int, num_groups: int, num_neighbors: int) -> Work:
    """Two passes over all distances of a centre (find the bound of the K nearest, collect them;
    recomputing is cheaper than storing G x N), one comparison each, and a bitonic sort of K."""
    log = math.ceil(math.log2(num_neighbors)) if num_neighbors > 1 else 0
    comparisons = num_neighbors * log * (log + 1) / 4
    return Work(
        "knn_grouping",
        plain_flop=num_groups * (2 * num_points * (DISTANCE_FLOP + 1) + comparisons),
        device_bytes=num_points * 3 * FLOAT_BYTES
        + num_groups * INDEX_BYTES
        + num_groups * num_neighbors * (INDEX_BYTES + 3 * FLOAT_BYTES),
    )


def inverse_distance_weights(num_points: int, num_centers: int) -> Work:
    """All N x G distances and one comparison each, in registers; three indices and weights out."""
    return Work(
        "inverse_distance_weights",
        plain_flop=num_points * num_centers * (DISTANCE_FLOP + 1) + num_points * 9,
        device_bytes=(num_points + num_centers) * 3 * FLOAT_BYTES
        + num_points * 3 * (INDEX_BYTES + FLOAT_BYTES),
    )


def inverse_distance_interpolation(num_points: int, num_centers: int, num_channels: int) -> Work:
    """Three weighted rows of features per point, written densely."""
    weights = inverse_distance_weights(num_points, num_centers)
    return Work(
        "inverse_distance_interpolation",
        plain_flop=weights.plain_flop + 6 * num_points * num_channels,
        device_bytes=weights.device_bytes
        + num_points * 3 * (INDEX_BYTES + FLOAT_BYTES)
        + (num_centers + num_points) * num_channels * FLOAT_BYTES,
    )


def pooled_interpolation_rows(
    num_points: int, num_pixels: int, window: int = POOLING_WINDOW
) -> Work:
    """Three entries per point under a pixel: indices and weights in, columns and values out."""
    entries = 3 * window * num_pixels
    return Work(
        "pooled_interpolation_rows",
        plain_flop=entries,
        device_bytes=num_points * 3 * (INDEX_BYTES + FLOAT_BYTES)
        + num_pixels * window * 2 * FLOAT_BYTES
        + entries * 2 * FLOAT_BYTES,
    )


def nearest_neighbor_scoring(
    num_queries: int,
    num_rows: int,
    num_channels: int,
    *,
    precision: str = "float32",
    num_splits: int = 1,
    query_tile: int = 128,
) -> Work:
    """The product of queries and bank, a norm and a comparison per pair, and the winners measured
    again in float32. The bank comes from device memory once (query tiles of the same part of the
    bank run side by side) and from the second level cache once per query tile."""
    operand = OPERAND_BYTES[precision]
    bank_bytes = num_rows * num_channels * operand
    tiles = math.ceil(num_queries / query_tile)
    candidates = num_queries * num_splits
    return Work(
        "nearest_neighbor_scoring",
        matrix_flop=2.0 * num_queries * num_rows * num_channels,
        plain_flop=3.0 * num_queries * num_rows + 3.0 * num_queries * num_channels,
        device_bytes=bank_bytes
        + num_rows * FLOAT_BYTES
        + 2 * num_queries * num_channels * FLOAT_BYTES
        + 2 * candidates * (INDEX_BYTES + FLOAT_BYTES),
        l2_bytes=tiles * bank_bytes,
    )


def k_center_greedy(
    num_rows: int, num_samples: int, num_channels: int, *, precision: str = "float32"
) -> Work:
    """Every step but the last reads all rows (they are larger than the caches), measures them
    against the row that was selected, and keeps one float32 distance each; what float64 measures
    again is left out."""
    steps = num_samples - 1
    return Work(
        "k_center_greedy",
        plain_flop=steps * num_rows * (3.0 * num_channels + 2),
        device_bytes=steps
        * num_rows
        * (num_channels * OPERAND_BYTES[precision] + 2.0 * FLOAT_BYTES)
        + num_samples * INDEX_BYTES,
    )


def pixel_mapping(
    num_pixels: int,
    num_tokens: int,
    num_targets: int,
    layers: tuple[int, ...],
    *,
    source_entries: float,
    target_entries: float,
    precision: str = "float32",
    pixel_tile: int = 64,
    output_tile: int = 128,
) -> Work:
    """The first weight on the tokens; per pixel the expansion of its output, GELU, the inner
    layers, and the last one compared with the expanded target as it is made. From the second level
    cache: the weights behind the first for every tile of pixels; the rows of tokens that the
    expansions mix; a tile's activations, written once and read again for every tile of outputs."""
    source, first, *_, target = layers
    inner = sum(a * b for a, b in pairwise(layers[1:]))
    weights = OPERAND_BYTES[precision] * inner
    rows = num_pixels * (source_entries + target_entries) * 2 * FLOAT_BYTES
    mixed = num_pixels * (source_entries * first + target_entries * target) * FLOAT_BYTES
    activations = OPERAND_BYTES[precision] * sum(
        num_pixels * a * (1 + math.ceil(b / output_tile)) for a, b in pairwise(layers[1:])
    )
    return Work(
        "pixel_mapping",
        matrix_flop=2.0 * (num_tokens * source * first + num_pixels * inner),
        plain_flop=num_pixels
        * (
            2.0 * source_entries * first
            + GELU_FLOP * sum(layers[1:-1])
            + 2.0 * target_entries * target
            + 6.0 * target
        ),
        device_bytes=OPERAND_BYTES[precision] * source * first
        + weights
        + FLOAT_BYTES * num_tokens * (source + 2 * first)
        + FLOAT_BYTES * num_targets * target
        + rows
        + FLOAT_BYTES * num_pixels,
        l2_bytes=math.ceil(num_pixels / pixel_tile) * weights + mixed + activations,
    )


def dense_mapping(num_pixels: int, layers: tuple[int, ...]) -> Work:
    """The published form: the whole network on every pixel, dense features in, a prediction out,
    both read again for the discrepancy."""
    products = sum(a * b for a, b in pairwise(layers))
    activations = sum(layers) + sum(layers[1:-1])
    return Work(
        "pixel_mapping, published",
        matrix_flop=2.0 * num_pixels * products,
        plain_flop=num_pixels * (GELU_FLOP * sum(layers[1:-1]) + 8.0 * layers[-1]),
        device_bytes=FLOAT_BYTES * (2.0 * num_pixels * activations + products),
    )


def point_embedding(num_groups: int, num_neighbors: int, *, precision: str = "float32") -> Work:
    """The composed layers (README.md of the op) by matrix products that store their results: each
    activation is written once and read once."""
    hidden, summary, wide, token = EMBEDDER
    points = num_groups * num_neighbors
    per_point = 3 * hidden + hidden * summary + hidden * wide + wide * token + hidden * hidden
    activations = hidden + summary + wide + token
    return Work(
        "point_embedding",
        matrix_flop=2.0 * (points * per_point + num_groups * summary * wide),
        plain_flop=points * 4.0 * (hidden + wide),
        device_bytes=points * 3 * FLOAT_BYTES
        + 2.0 * points * activations * OPERAND_BYTES[precision]
        + num_groups * token * FLOAT_BYTES,
    )


def published_embedding(num_groups: int, num_neighbors: int) -> Work:
    """The published order of work: 512 -> 512 on every point, everything stored."""
    hidden, summary, wide, token = EMBEDDER
    points = num_groups * num_neighbors
    per_point = 3 * hidden + hidden * summary + wide * wide + wide * token
    activations = 2 * hidden + summary + 3 * wide + token
    return Work(
        "point_embedding, published",
        matrix_flop=2.0 * points * per_point,
        plain_flop=points * 4.0 * (hidden + wide),
        device_bytes=2.0 * points * activations * FLOAT_BYTES,
    )


def transformer_blocks(
    num_tokens: int, dim: int, num_heads: int, num_blocks: int, *, precision: str = "float32"
) -> Work:
    """Pre-norm blocks with an MLP of 4 x dim. Each operator of the graph stores its result; the
    attention matrix is written, normalised and read."""
    operand = OPERAND_BYTES[precision]
    macs = 12.0 * num_tokens * dim**2 + 2.0 * num_tokens**2 * dim
    activations = 2.0 * 16 * num_tokens * dim + 4.0 * num_heads * num_tokens**2
    return Work(
        "transformer blocks",
        matrix_flop=2.0 * num_blocks * macs,
        plain_flop=num_blocks
        * (GELU_FLOP * 4.0 * num_tokens * dim + 5.0 * num_heads * num_tokens**2),
        device_bytes=num_blocks * operand * (12.0 * dim**2 + activations),
    )
