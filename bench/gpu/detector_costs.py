"""What a scan costs on a card: the steps of each detector, their time by the roofline, and which
algorithm fits which card. A model: nothing here was measured.

The time of a step is the largest of arithmetic / peak, traffic / bandwidth of device memory, and
traffic / bandwidth of the second level cache; sampling, a chain of dependent steps, has a term of
its own. Left out: launches, copies from and to the host, what the host does, and that no kernel
reaches a peak: the result is a bound from below.
"""

from __future__ import annotations

from dataclasses import dataclass

import kernel_costs as costs
from cards import Card
from kernel_costs import Work

from mmad_fast.backbones.table import get_rgb_spec
from mmad_fast.methods.variants import Variant

GRID = 224
FOREGROUND_PIXELS = 14_049
"""28 % of the grid: what is scored on the procedural depth frame of the benchmarks."""
ALL_PIXELS = GRID * GRID
NUM_GROUPS, GROUP_SIZE = 1024, 128
NUM_TOKENS = 784
POINT_DIM, POINT_HEADS = 384, 6
POINT_ENTRIES = 3.0 * costs.POOLING_WINDOW

L2_BYTES_PER_CLOCK = 32
"""Assumed reads of one multiprocessor from the second level cache; half the width of its port."""
BLOCK_STEP_CLOCKS = 430
"""Assumed latency of an arg-max over one block in the published form: two rounds of five shuffles
at 30 clocks, two round trips through shared memory and two barriers at 25, and the winner's
coordinates at 30."""
PRUNED_STEP_CLOCKS = 310
"""Assumed of a step on pruned leaves (README.md of the op): test and vote 50, arg-max of the warp
80, slots and barrier 60, arg-max over the slots 120."""
LEAVES_CLOCKS, FURTHER_LEAF_CLOCKS = 275, 50
"""Assumed of the busiest warp: its first two leaves, and each further one."""
CLUSTER_CLOCKS = 300
"""Assumed of a cluster's barrier and remote slots."""
BUSIEST_LEAVES, COUNTED_POINTS, COUNTED_WARPS = 1.6, 13_811, 32
"""Counted on a depth frame of that many points: leaves per sample of the busiest of 32 warps. They
grow with the root of the points (4.6 at 119,378), and are shared out by more warps."""
CLUSTER_BLOCKS, CLUSTER_WARPS = 8, 128
MAPPING_STRIP, MAPPING_PROGRAMS = 64, 2
"""Pixels of a strip, and strips in flight per multiprocessor, of pixel_mapping."""
POINT_STATE_BYTES = 16
"""Coordinates and distance to the nearest sample."""
REGISTER_BYTES_FOR_POINTS = 128 * 1024
"""Half of a multiprocessor's registers."""


@dataclass(frozen=True)
class Estimate:
    """The modelled time of a step.

    Attributes:
        work: What is done.
        seconds: The time.
        limit: What it is bound by: "arithmetic", "memory", "L2" or "latency".
        choice: The algorithm or tile that was taken, if there is a choice.
    """

    work: Work
    seconds: float
    limit: str
    choice: str = ""


def roofline(work: Work, card: Card, precision: str, *, choice: str = "") -> Estimate:
    """The time that arithmetic or traffic takes, whichever is longer."""
    times = {
        "arithmetic": work.matrix_flop / card.flop_per_s(precision)
        + work.plain_flop / card.flop_per_s("float32"),
        "memory": work.device_bytes / card.bytes_per_s,
        "L2": work.l2_bytes / (L2_BYTES_PER_CLOCK * card.multiprocessors * card.clocks_per_s),
    }
    limit = max(times, key=lambda name: times[name])
    return Estimate(work, times[limit], limit, choice)


def sampling(card: Card, num_points: int, num_samples: int) -> Estimate:
    """Farthest point sampling of a scan by the faster of the kernels that the card has."""
    options = {"one block": _pruned_sampling_seconds(card, num_points, num_samples)}
    if card.architecture.has_clusters:
        options[f"cluster of {CLUSTER_BLOCKS}"] = _pruned_sampling_seconds(
            card, num_points, num_samples, num_warps=CLUSTER_WARPS, more_clocks=CLUSTER_CLOCKS
        )
    choice = min(options, key=lambda name: options[name])
    work = costs.farthest_point_sampling(num_points, num_samples)
    return Estimate(work, options[choice], "latency", choice)


def _pruned_sampling_seconds(
    card: Card,
    num_points: int,
    num_samples: int,
    *,
    num_warps: int = COUNTED_WARPS,
    more_clocks: float = 0,
) -> float:
    """Steps follow each other, and each takes what its busiest warp takes."""
    growth = (num_points / COUNTED_POINTS) ** 0.5 * (COUNTED_WARPS / num_warps) ** 0.5
    leaves = max(1.0, BUSIEST_LEAVES * growth)
    clocks = PRUNED_STEP_CLOCKS + LEAVES_CLOCKS + FURTHER_LEAF_CLOCKS * max(0.0, leaves - 2)
    return num_samples * (clocks + more_clocks) / card.clocks_per_s


def published_sampling_seconds(card: Card, num_points: int, num_samples: int) -> float:
    """One block that measures every point in every step: its arithmetic, or what does not fit its
    registers and shared memory from the second level cache, and then the arg-max."""
    # An instruction is a clock per lane: a difference, product or sum each, minimum and comparison.
    arithmetic = num_points * (costs.DISTANCE_FLOP + 2) / card.float32_lanes
    on_chip = REGISTER_BYTES_FOR_POINTS + card.architecture.shared_per_block
    spilled = max(0, num_points * POINT_STATE_BYTES - on_chip)
    clocks = max(arithmetic, spilled / L2_BYTES_PER_CLOCK) + BLOCK_STEP_CLOCKS
    return num_samples * clocks / card.clocks_per_s


def mapping_scratch_bytes(card: Card, hidden: int, precision: str) -> int:
    """Of all strips in flight: two layers' activations each (triton_kernel.py of pixel_mapping)."""
    programs = MAPPING_PROGRAMS * card.multiprocessors
    return programs * 2 * MAPPING_STRIP * hidden * costs.OPERAND_BYTES[precision]


def bank_splits(card: Card, num_queries: int, num_rows: int, *, query_tile: int = 128) -> int:
    """Parts of the bank: so many that there are two programs per multiprocessor, each of 1024 rows
    at least."""
    tiles = -(-num_queries // query_tile)
    wanted = -(-2 * card.multiprocessors // tiles)
    return max(1, min(wanted, num_rows // 1024))


def point_channels(variant: Variant) -> int:
    return POINT_DIM * len(variant.point_layers)


def mapping_layers(variant: Variant) -> tuple[int, ...]:
    """RGB to points; the other direction is its reverse."""
    rgb, point = get_rgb_spec(variant.rgb_backbone).dim, point_channels(variant)
    hidden = (rgb + point) // 2
    return (rgb, hidden, hidden, point)


def detector_steps(
    variant: Variant, card: Card, *, num_points: int, num_pixels: int, precision: str
) -> dict[str, Estimate]:
    """The steps of a CFM detector on the card, in the order of the data flow. `precision` is that
    of the operands in backbones, embedder and mapping; geometry is float32 always."""
    spec = get_rgb_spec(variant.rgb_backbone)
    layers = mapping_layers(variant)
    rgb = costs.transformer_blocks(
        NUM_TOKENS + 1, spec.dim, spec.num_heads, variant.rgb_layers, precision=precision
    )
    points = costs.transformer_blocks(
        NUM_GROUPS, POINT_DIM, POINT_HEADS, variant.point_layers[-1] + 1, precision=precision
    )
    there, back = (
        costs.pixel_mapping(
            num_pixels,
            *tokens,
            sizes,
            source_entries=entries[0],
            target_entries=entries[1],
            precision=precision,
            pixel_tile=MAPPING_STRIP,
        )
        for sizes, tokens, entries in (
            (layers, (NUM_TOKENS, NUM_GROUPS), (costs.BILINEAR_ENTRIES, POINT_ENTRIES)),
            (layers[::-1], (NUM_GROUPS, NUM_TOKENS), (POINT_ENTRIES, costs.BILINEAR_ENTRIES)),
        )
    )
    embedding = costs.point_embedding(NUM_GROUPS, GROUP_SIZE, precision=precision)
    mapping = _sum("pixel_mapping, both directions", there, back)
    return {
        "RGB blocks": roofline(rgb, card, precision),
        "sampling": sampling(card, num_points, NUM_GROUPS),
        "grouping": roofline(
            costs.knn_grouping(num_points, NUM_GROUPS, GROUP_SIZE), card, "float32"
        ),
        "point embedding": roofline(embedding, card, precision),
        "point blocks": roofline(points, card, precision),
        "interpolation": roofline(
            _sum(
                "weights and pooled rows",
                costs.inverse_distance_weights(num_points, NUM_GROUPS),
                costs.pooled_interpolation_rows(num_points, num_pixels),
            ),
            card,
            "float32",
        ),
        "mapping": roofline(mapping, card, precision),
    }


def published_steps(variant: Variant, card: Card, *, num_points: int) -> dict[str, Estimate]:
    """The steps of the published pipeline, float32: networks on every pixel, dense features, and a
    matrix of all differences between points and centres, which is written and read."""
    spec = get_rgb_spec(variant.rgb_backbone)
    layers = mapping_layers(variant)
    channels = point_channels(variant)
    pairs = num_points * NUM_GROUPS
    differences = Work(
        "all differences",
        plain_flop=pairs * 9.0,
        device_bytes=pairs * costs.FLOAT_BYTES * (3 + 3 + 1 + 1),
    )
    # Published: a full sort of the distances, dense rows, a grid of zeros, two poolings, bilinear.
    dense = Work(
        "dense features",
        plain_flop=pairs * 9.0 + ALL_PIXELS * channels * 16.0,
        device_bytes=pairs * costs.FLOAT_BYTES * 4
        + costs.FLOAT_BYTES * num_points * channels * 4
        + costs.FLOAT_BYTES * ALL_PIXELS * (channels * 7 + spec.dim * 2),
    )
    directions = (costs.dense_mapping(ALL_PIXELS, sizes) for sizes in (layers, layers[::-1]))
    mapping = _sum("both networks", *directions)
    blocks = {
        "RGB blocks": costs.transformer_blocks(
            NUM_TOKENS + 1, spec.dim, spec.num_heads, variant.rgb_layers
        ),
        "grouping": differences,
        "point embedding": costs.published_embedding(NUM_GROUPS, GROUP_SIZE),
        "point blocks": costs.transformer_blocks(
            NUM_GROUPS, POINT_DIM, POINT_HEADS, variant.point_layers[-1] + 1
        ),
        "interpolation": dense,
        "mapping": mapping,
    }
    steps = {name: roofline(work, card, "float32") for name, work in blocks.items()}
    one_block = published_sampling_seconds(card, num_points, NUM_GROUPS)
    work = costs.farthest_point_sampling(num_points, NUM_GROUPS)
    steps["sampling"] = Estimate(work, one_block, "latency", "one block")
    return steps


def seconds(steps: dict[str, Estimate]) -> float:
    return sum(step.seconds for step in steps.values())


def bottleneck(steps: dict[str, Estimate]) -> str:
    """The step that takes longest, its share of the time and what bounds it."""
    name = max(steps, key=lambda step: steps[step].seconds)
    share = steps[name].seconds / seconds(steps)
    return f"{name}, {100 * share:.0f} % ({steps[name].limit})"


def _sum(name: str, *parts: Work) -> Work:
    return Work(
        name,
        *(
            sum(getattr(part, field) for part in parts)
            for field in ("matrix_flop", "plain_flop", "device_bytes", "l2_bytes")
        ),
    )
