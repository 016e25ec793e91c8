"""What training M3DM's feature fusion (UFF) costs and does: memory, time per update, alignment.

    python bench/m3dm_uff.py --data DATA_SET --rgb-weights dinov2_vits14.safetensors \\
        --output bench/results/m3dm_uff.jsonl

Appends one JSON row per measurement to --output:
- "uff_memory": growth of a process' peak memory by one update on --memory-patches random patches of
  1152 + 768 channels, by blocks (ours) and with plain logits (one query per patch, all at once);
  each in its own process, and the loss of both. Leave it out with --memory-patches 0.
- "uff_alignment": per pairing and schedule, the CPU and wall seconds per update, and how often a
  token finds its own point patch on the validation scans, before and after.
About 10 minutes on two cores for rendered3d; --updates N shortens it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from mmad_fast.data import ScanFile, open_dataset
from mmad_fast.measure.environment import environment
from mmad_fast.measure.memory import peak_working_mib
from mmad_fast.methods.fitting import FitRequest
from mmad_fast.methods.m3dm.contrastive_loss import alignment_accuracy
from mmad_fast.methods.m3dm.fit_options import M3dmFitOptions
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock
from mmad_fast.methods.m3dm.uff_categories import ExtractedPatches, extracted_patches
from mmad_fast.methods.m3dm.uff_training import PatchBatch, UffRecipe, batch_loss, train_uff
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.threads import get_num_threads

CHANNELS = (1152, 768)
"""Of the points and of RGB, at full size."""
PATCHES_PER_TOKEN = 4


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="append the rows here; default: print them")
    parser.add_argument("--category", action="append", help="only this one; repeatable")
    parser.add_argument("--rgb-backbone", default="dinov2-vits14")
    parser.add_argument("--rgb-weights", required=True)
    parser.add_argument("--rgb-layers", type=int, default=8)
    parser.add_argument("--point-weights", default="random")
    parser.add_argument("--point-layers", default="0")
    parser.add_argument("--point-patches", default="56x56")
    parser.add_argument("--pairings", nargs="+", default=["aligned", "published_dump"])
    parser.add_argument("--schedules", nargs="+", default=["quick", "code", "paper"])
    parser.add_argument("--updates", type=int, help="default: as many as the schedule has")
    parser.add_argument("--memory-patches", type=int, default=12_000)
    parser.add_argument("--measure-memory", choices=["blocks", "plain"], help=argparse.SUPPRESS)
    return parser.parse_args()


def random_batch(num_patches: int) -> PatchBatch:
    """Patches of full-size channels, four to a token."""
    rng = np.random.default_rng(0)
    point, rgb = CHANNELS
    num_tokens = -(-num_patches // PATCHES_PER_TOKEN)
    return PatchBatch(
        torch.from_numpy(rng.standard_normal((num_tokens, rgb), np.float32)),
        torch.from_numpy(rng.standard_normal((num_patches, point), np.float32)),
        torch.arange(num_patches) // PATCHES_PER_TOKEN,
    )


def plain_loss(network: FeatureFusionBlock, batch: PatchBatch) -> torch.Tensor:
    """The published loss as it stands: a query per patch, and patches x patches logits."""
    queries = network.rgb_queries(batch.tokens[batch.owner])
    keys = network.point_keys(batch.point_rows)
    return F.cross_entropy(queries @ keys.T, torch.arange(len(keys))) * 2


def measure_update(kind: str, num_patches: int) -> dict[str, Any]:
    """Peak memory and time of one loss with its gradient, in this process."""
    torch.set_num_threads(get_num_threads())
    network, batch = FeatureFusionBlock(*CHANNELS), random_batch(num_patches)
    losses, seconds = [], []

    def update() -> None:
        start = time.perf_counter()
        loss = batch_loss(network, batch) if kind == "blocks" else plain_loss(network, batch)
        loss.backward()
        seconds.append(time.perf_counter() - start)
        losses.append(float(loss.detach()))

    peak = peak_working_mib(update)
    return {"peak_working_mib": peak, "loss": losses[0], "seconds": seconds[0]}


def memory_row(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both kinds, each in a process of its own."""
    results = {}
    for kind in ("blocks", "plain"):
        command = [sys.executable, __file__, "--data", ".", "--rgb-weights", "none"]
        command += ["--measure-memory", kind, "--memory-patches", str(arguments.memory_patches)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # A process that the system killed says nothing: out of memory, for the plain one.
        results[kind] = json.loads(done.stdout) if done.returncode == 0 else None
    return {
        "what": "uff_memory",
        "num_patches": arguments.memory_patches,
        "channels": CHANNELS,
        "threads": get_num_threads(),
        **results,
    }


def alignment_row(patches: ExtractedPatches, recipe: UffRecipe) -> dict[str, Any]:
    """What a training does to the alignment of the validation scans, and what it costs."""
    clocks = time.process_time(), time.perf_counter()
    network, record = train_uff(patches.train, recipe, patch_grid=patches.patch_grid)
    updates = record.plan.updates
    cpu_s, wall_s = time.process_time() - clocks[0], time.perf_counter() - clocks[1]
    initial = FeatureFusionBlock(network.point_channels, network.rgb_channels, seed=recipe.seed)
    before, after = (
        alignment_accuracy(one, patches.validation, patch_grid=patches.patch_grid)
        for one in (initial, network)
    )
    return {
        "what": "uff_alignment",
        **record.to_dict(),
        "channels": (network.point_channels, network.rgb_channels),
        "patch_grid": patches.patch_grid,
        "weights": patches.weights,
        "cpu_s_per_update": round(cpu_s / updates, 4),
        "wall_s_per_update": round(wall_s / updates, 4),
        "threads": get_num_threads(),
        "before": asdict(before),
        "after": asdict(after),
    }


def write_row(output: Path | None, row: Mapping[str, Any]) -> None:
    line = json.dumps({**row, "environment": environment()}, allow_nan=False)
    if output is None:
        print(line, flush=True)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def fit_options(arguments: argparse.Namespace) -> M3dmFitOptions:
    return M3dmFitOptions.of(
        FitRequest(
            method="m3dm",
            rgb_backbone=arguments.rgb_backbone,
            rgb_weights=arguments.rgb_weights,
            rgb_layers=arguments.rgb_layers,
            point_weights=arguments.point_weights,
            point_layers=tuple(map(int, arguments.point_layers.split(","))),
            options={"point_patches": arguments.point_patches},
        )
    )


def scans_of(
    arguments: argparse.Namespace, split: Literal["train", "validation"]
) -> Sequence[ScanFile]:
    dataset = open_dataset(arguments.data)
    categories = arguments.category or dataset.categories()
    return [scan for category in categories for scan in dataset.scans(category, split)]


def main() -> None:
    arguments = parse_arguments()
    if arguments.measure_memory:
        print(json.dumps(measure_update(arguments.measure_memory, arguments.memory_patches)))
        return
    write = partial(write_row, arguments.output)
    if arguments.memory_patches:
        write(memory_row(arguments))
    train, validation = scans_of(arguments, "train"), scans_of(arguments, "validation")
    options = fit_options(arguments)
    with (
        torch_threads(),
        extracted_patches(train, validation, options, lambda *_: None) as patches,
    ):
        for schedule in arguments.schedules:
            for pairing in arguments.pairings:
                recipe = UffRecipe(pairing=pairing, schedule=schedule, updates=arguments.updates)
                write(alignment_row(patches, recipe))


if __name__ == "__main__":
    main()
