"""Writes docs/gpu_cost_model.md: what the kernels and detectors would take on GPUs by the roofline.

python bench/tables/gpu_cost_model.py            # rewrites the page
python bench/tables/gpu_cost_model.py --check    # exit code 1 if the page would change
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))

import detector_costs as detectors
import kernel_costs as costs
from cards import BY_NAME, CARDS, Card
from detector_costs import (
    ALL_PIXELS,
    FOREGROUND_PIXELS,
    GROUP_SIZE,
    NUM_GROUPS,
    NUM_TOKENS,
    POINT_ENTRIES,
    Estimate,
)
from kernel_costs import Work

from mmad_fast.measure.generated_pages import write_pages
from mmad_fast.measure.published import load_published
from mmad_fast.methods.variants import Variant, variants_of

CFM = variants_of("cfm")
PAGE = Path(__file__).parents[2] / "docs" / "gpu_cost_model.md"
PUBLISHED_CARD = "RTX 4090"
PRECISION_GAIN = 1.5
M3DM_BANKS = {  # Q, M, C; method facts 5.3 and 5.4, 244 training scans
    "M3DM points": (3136, 76_518, 1152),
    "M3DM RGB": (784, 7_651, 768),
    "M3DM fusion": (3136, 7_651, 1920),
}
M3DM_CORESETS = {  # N, n, C projected; method facts 5.3
    "M3DM points": (765_184, 76_518, 334),
    "M3DM RGB": (191_296, 7_651, 300),
}

TITLE = """# GPU cost model

**MODEL: no figure on this page was measured**, but the published ones, which are printed as such.
Made by `bench/tables/gpu_cost_model.py` from data sheets and formulas (`bench/gpu/cards.py`,
`kernel_costs.py`, `detector_costs.py`). Measured figures come from `bench/on_gpu.py` and stand in
`benchmarks/gpu.md`.

A step takes the longest of arithmetic / peak, traffic / bandwidth of the device memory, and traffic
/ bandwidth of the second level cache. Farthest point sampling is a chain of dependent steps and has
a term for their latency. No kernel reaches such bounds, and launches, host and copies are left out:
real times are longer. What the model is good for: which step is the bottleneck, and which algorithm
fits which card.
"""
ASSUMPTIONS = f"""\
## Assumptions
- Sizes: 224 x 224 pixels, {FOREGROUND_PIXELS:,} of them scored (28 %) or all {ALL_PIXELS:,}; as
  many points as pixels; {NUM_GROUPS} groups of {GROUP_SIZE} points; {NUM_TOKENS} tokens.
- Traffic: inputs read once, outputs written once. Backbones and embedder store each activation. The
  mapping moves weights, mixed rows and activations through the second level cache; where its
  scratch is larger, the excess goes to memory, which is left out.
- Second level cache: {detectors.L2_BYTES_PER_CLOCK} bytes per clock and multiprocessor.
- Sampling: a step takes {detectors.PRUNED_STEP_CLOCKS} clocks, \
{detectors.LEAVES_CLOCKS} more for the busiest warp's first two leaves, and
  {detectors.FURTHER_LEAF_CLOCKS} for each further one; a cluster's \
{detectors.CLUSTER_CLOCKS} more. Leaves were counted on depth frames; in
  clouds without order all are busy. The kernel takes the cluster from 65,537 points on, this model
  only from far more: real hardware must tell. The published form measures all points in every step,
  and its arg-max takes {detectors.BLOCK_STEP_CLOCKS} clocks.
- float16: operands of the products in backbones, embedder, mapping and scoring, float32 accumulate;
  geometry stays float32. float32: the CUDA cores, no TF32.
- The coreset, a part of fitting, reads all rows from memory in every step; no step is skipped.
- Scoring precision: float16 (with the winners measured again in float32) where the model gains more
  than {PRECISION_GAIN:g}x.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def card_table() -> list[str]:
    head = ("card", "sm", "SMs", "clock GHz", "GB/s", "L2 MiB", "shared KiB/SM")
    peaks = ("FP32 TFLOP/s", "TF32", "FP16")
    rows = [
        (
            *(card.name, str(card.sm), str(card.multiprocessors), f"{card.clock_ghz:g}"),
            *(f"{card.bandwidth_gbs:g}", f"{card.l2_mib:g}"),
            str(card.architecture.shared_per_sm_kib),
            *(f"{peak:g}" for peak in (card.float32_tflops, card.tf32_tflops, card.float16_tflops)),
        )
        for card in CARDS
    ]
    return [
        "## Cards",
        "TF32 and FP16 are tensor cores, dense, with float32 accumulate.",
        "",
        *table((*head, *peaks), rows),
        *(f"- {card.name}: {card.source}" for card in CARDS),
        "",
    ]


def kernel_works(precision: str, card: Card) -> list[tuple[str, Work]]:
    """(shapes, work) of every kernel at its real sizes."""
    found = []
    for num_points in (FOREGROUND_PIXELS, ALL_PIXELS):
        found += [
            (f"N={num_points}, G=1024", costs.farthest_point_sampling(num_points, NUM_GROUPS)),
            (
                f"N={num_points}, G=1024, K=128",
                costs.knn_grouping(num_points, NUM_GROUPS, GROUP_SIZE),
            ),
            (f"N={num_points}, G=1024", costs.inverse_distance_weights(num_points, NUM_GROUPS)),
            (
                f"N={num_points}, G=1024, C=1152",
                costs.inverse_distance_interpolation(num_points, NUM_GROUPS, 1152),
            ),
            (
                f"N={num_points}, P={num_points}",
                costs.pooled_interpolation_rows(num_points, num_points),
            ),
        ]
    embedding = costs.point_embedding(NUM_GROUPS, GROUP_SIZE, precision=precision)
    found.append(("G=1024, K=128", embedding))
    for name in ("cfm", "cfm-t"):
        for num_pixels in (FOREGROUND_PIXELS, ALL_PIXELS):
            layers = detectors.mapping_layers(CFM[name])
            work = costs.pixel_mapping(
                num_pixels,
                NUM_TOKENS,
                NUM_GROUPS,
                layers,
                source_entries=costs.BILINEAR_ENTRIES,
                target_entries=POINT_ENTRIES,
                precision=precision,
                pixel_tile=detectors.MAPPING_STRIP,
            )
            found.append((f"{name}, RGB to points, P={num_pixels}", work))
    for name, (queries, rows, channels) in M3DM_BANKS.items():
        work = costs.nearest_neighbor_scoring(
            queries,
            rows,
            channels,
            precision=precision,
            num_splits=detectors.bank_splits(card, queries, rows),
        )
        found.append((f"{name}: Q={queries}, M={rows}, C={channels}", work))
    for name, (rows, samples, channels) in M3DM_CORESETS.items():
        work = costs.k_center_greedy(rows, samples, channels, precision=precision)
        found.append((f"{name}: N={rows}, n={samples}, C={channels}", work))
    return found


def kernel_table() -> list[str]:
    reference = BY_NAME[PUBLISHED_CARD]
    rows = [
        (
            *(work.name, shapes, f"{work.matrix_flop / 1e9:.3g}", f"{work.plain_flop / 1e9:.3g}"),
            *(f"{work.device_bytes / 1e6:.3g}", f"{work.flop / work.device_bytes:.3g}"),
        )
        for shapes, work in kernel_works("float32", reference)
    ]
    head = ("kernel", "shapes", "matrix GFLOP", "other GFLOP", "MB moved", "FLOP per byte")
    return ["## Kernels: work (MODEL)", "float32.", "", *table(head, rows)]


def kernel_estimate(work: Work, card: Card, precision: str, shapes: str) -> Estimate:
    if work.name == "farthest_point_sampling":
        num_points = FOREGROUND_PIXELS if str(FOREGROUND_PIXELS) in shapes else ALL_PIXELS
        return detectors.sampling(card, num_points, NUM_GROUPS)
    return detectors.roofline(work, card, precision)


def kernel_time_table() -> list[str]:
    lines = [
        "## Kernels: time (MODEL)",
        "Milliseconds, float32 / float16 operands where there are products or rows of features.",
        "",
    ]
    columns = []
    for card in CARDS:
        cells = []
        plain, half = (kernel_works(precision, card) for precision in ("float32", "float16"))
        for (shapes, slow), (_, fast) in zip(plain, half, strict=True):
            first = kernel_estimate(slow, card, "float32", shapes)
            second = kernel_estimate(fast, card, "float16", shapes)
            text = milliseconds(first.seconds)
            if slow.matrix_flop or slow.name == "k_center_greedy":
                text += f" / {milliseconds(second.seconds)}"
            cells.append(f"{text} ({second.limit})")
        columns.append(cells)
    names = [f"{work.name}, {shapes}" for shapes, work in kernel_works("float32", CARDS[0])]
    rows = [(name, *cells) for name, *cells in zip(names, *columns, strict=True)]
    return [*lines, *table(("kernel", *(card.name for card in CARDS)), rows)]


def milliseconds(value_s: float) -> str:
    value = 1e3 * value_s
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"


def published_fps(variant: Variant) -> list[tuple[str, float]]:
    """(GPU, fps) of every printed value; one in a text that contradicts its table is left out."""
    return [
        (row.gpu, row.value)
        for row in load_published()
        if row.method == variant.published and row.metric == "fps" and "text" not in row.source
    ]


def detector_table() -> list[str]:
    rows = []
    for variant in CFM.values():
        printed = dict(published_fps(variant))
        for card in CARDS:
            cells = [variant.name, card.name]
            for num_pixels in (FOREGROUND_PIXELS, ALL_PIXELS):
                for precision in ("float32", "float16"):
                    steps = detectors.detector_steps(
                        variant,
                        card,
                        num_points=num_pixels,
                        num_pixels=num_pixels,
                        precision=precision,
                    )
                    cells.append(milliseconds(detectors.seconds(steps)))
                    if num_pixels == FOREGROUND_PIXELS:
                        bound = detectors.bottleneck(steps)
                        cells.append(bound)
            fps = printed.get(card.name)
            cells.append("–" if fps is None else f"{1e3 / fps:.1f} ms = {fps:g} fps")
            rows.append(cells)
    head = (
        *("method", "card", "float32 ms, 28 %", "its bottleneck"),
        *("float16 ms, 28 %", "its bottleneck"),
        *("float32 ms, all pixels", "float16 ms, all pixels", "published pipeline, as printed"),
    )
    return [
        "## Detectors (MODEL) beside the published speed",
        "Prepared scan to discrepancies. 28 % and all: share of the grid that is scored. "
        "Published: CFM paper, Table 5; its dense pipeline, input preprocessing included.",
        "",
        *table(head, rows),
    ]


def step_table() -> list[str]:
    """The steps on the card of the published speed, ours and the published ones."""
    card = BY_NAME[PUBLISHED_CARD]
    names = (
        *("RGB blocks", "sampling", "grouping", "point embedding", "point blocks"),
        *("interpolation", "mapping"),
    )
    rows = []
    for variant in CFM.values():
        forms = {
            f"ours, {precision}": detectors.detector_steps(
                variant,
                card,
                num_points=FOREGROUND_PIXELS,
                num_pixels=FOREGROUND_PIXELS,
                precision=precision,
            )
            for precision in ("float32", "float16")
        }
        forms["published, float32"] = detectors.published_steps(
            variant, card, num_points=FOREGROUND_PIXELS
        )
        for form, steps in forms.items():
            gmac = sum(step.work.matrix_flop for step in steps.values()) / 2e9
            total = detectors.seconds(steps)
            cells = [variant.name, form, f"{gmac:.0f}"]
            cells += [milliseconds(steps[name].seconds) for name in names]
            rows.append([*cells, milliseconds(total), f"{1 / total:.0f}"])
    head = ("method", "form", "GMAC in products", *names, "sum", "fps, at most")
    printed = ", ".join(
        f"{variant.name} {fps:g}" for variant in CFM.values() for _, fps in published_fps(variant)
    )
    return [
        f"## Steps on the {PUBLISHED_CARD} (MODEL)",
        f"Milliseconds. Printed fps of the published pipeline on this card: {printed}.",
        "",
        *table(head, rows),
    ]


def choice_table() -> list[str]:
    rows = []
    queries, bank, channels = M3DM_BANKS["M3DM points"]
    hidden = detectors.mapping_layers(CFM["cfm"])[1]
    for card in CARDS:
        splits = detectors.bank_splits(card, queries, bank)
        few_splits = detectors.bank_splits(card, *M3DM_BANKS["M3DM RGB"][:2])
        by_precision = {
            precision: detectors.roofline(
                costs.nearest_neighbor_scoring(
                    queries, bank, channels, precision=precision, num_splits=splits
                ),
                card,
                precision,
            ).seconds
            for precision in ("float32", "float16")
        }
        gain = by_precision["float32"] / by_precision["float16"]
        samplings = [
            detectors.sampling(card, num_points, NUM_GROUPS)
            for num_points in (FOREGROUND_PIXELS, ALL_PIXELS)
        ]
        rows.append(
            (
                card.name,
                *(f"{step.choice}, {milliseconds(step.seconds)} ms" for step in samplings),
                f"{'float16' if gain > PRECISION_GAIN else 'float32'} ({gain:.1f}x)",
                f"{splits} / {few_splits}",
                " / ".join(
                    f"{detectors.mapping_scratch_bytes(card, hidden, precision) / 2**20:.0f}"
                    for precision in ("float32", "float16")
                )
                + f" of {card.l2_mib:g}",
            )
        )
    head = (
        *("card", f"sampling, N={FOREGROUND_PIXELS}", f"sampling, N={ALL_PIXELS}"),
        *("scoring precision (gain)", "bank splits, M3DM points / RGB"),
        "mapping scratch, float32 / float16, MiB of the L2",
    )
    return ["## Choice of algorithm per card (MODEL)", *table(head, rows)]


def bank_table() -> list[str]:
    rows = []
    for name, (queries, bank, channels) in M3DM_BANKS.items():
        cells = [name]
        for card in CARDS:
            times = [
                detectors.roofline(
                    costs.nearest_neighbor_scoring(queries, bank, channels, precision=precision),
                    card,
                    precision,
                ).seconds
                for precision in ("float32", "tf32", "float16")
            ]
            cells.append(" / ".join(milliseconds(time) for time in times))
        rows.append(cells)
    printed = "; ".join(
        f"{row.method} {row.value:g} fps on {row.gpu} ({row.source})"
        for row in load_published()
        if row.method in ("M3DM", "BTF", "AST", "EasyNet", "MMRD") and row.metric == "fps"
    )
    return [
        "## Memory banks of M3DM (MODEL)",
        "Milliseconds of scoring alone, float32 / TF32 / float16 operands. M3DM, BTF, AST, EasyNet "
        "and MMRD are not part of this version: of M3DM only this kernel is modelled. Printed: "
        f"{printed}.",
        "",
        *table(("bank", *(card.name for card in CARDS)), rows),
    ]


def render() -> str:
    return (
        "\n".join(
            [
                TITLE,
                *detector_table(),
                *step_table(),
                *choice_table(),
                *bank_table(),
                *kernel_table(),
                *kernel_time_table(),
                ASSUMPTIONS,
                *card_table(),
            ]
        ).rstrip("\n")
        + "\n"
    )


def render_pages() -> dict[Path, str]:
    """The page by its file."""
    return {PAGE: render()}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render_pages))
