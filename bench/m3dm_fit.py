"""What fitting M3DM costs: time by stage, memory, and the coreset beside plain torch.

    python bench/m3dm_fit.py --data rendered3d --category gear --num-scans 244 \\
        --results bench/results/m3dm_fit.jsonl

Bagel's size by default: 244 scans, 3136 patches of 1152 point and 768 RGB channels each. The scans
are those of the data set's training split, again and again, each time moved by some pixels and with
new noise; the backbones' weights are random unless files are given. It takes a long time and a few
GB of the temporary folder's disk: try `--num-scans 10` first.

The fit runs in a process of its own that may not allocate more than --memory-limit-gib. The plain
greedy then runs on the rows of the point bank that the fit has projected, for --plain-steps steps,
and on as many rows as the published code has, equal ones not left out; what all steps would take is
that much longer, and called extrapolated.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmad_fast.data import ScanFile, open_dataset
from mmad_fast.data.selection import pick_category
from mmad_fast.measure.environment import environment
from mmad_fast.measure.memory import process_peak_mib
from mmad_fast.methods.m3dm import memory_banks
from mmad_fast.methods.m3dm.fit import fit_m3dm
from mmad_fast.methods.m3dm.fit_options import M3dmFitOptions
from mmad_fast.scan import Scan
from mmad_fast.threads import get_num_threads

NOISE_M = 2e-4
MAX_SHIFT = 12


@dataclass(frozen=True)
class MovedScan:
    """A scan file, moved by some pixels and with new noise: another scan of the same kind."""

    file: ScanFile
    seed: int

    @property
    def name(self) -> str:
        return f"{self.file.name}, moved {self.seed}"

    def load(self, *, unit: str) -> Scan:
        scan = self.file.load(unit=unit)
        rng = np.random.default_rng(self.seed)
        shift = tuple(rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2))
        xyz, rgb = (np.roll(array, shift, axis=(0, 1)) for array in (scan.xyz, scan.rgb))
        is_point = (xyz != 0).any(axis=-1, keepdims=True)
        xyz = xyz + is_point * rng.normal(0, NOISE_M, xyz.shape).astype(np.float32)
        noisy = np.clip(rgb + rng.normal(0, 4, rgb.shape), 0, 255).astype(np.uint8)
        return replace(scan, rgb=noisy, xyz=xyz)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category")
    parser.add_argument("--num-scans", type=int, default=244)
    parser.add_argument("--method", default="m3dm")
    parser.add_argument("--uff", default="train", help="'train', 'none' or a file")
    parser.add_argument("--rgb-backbone")
    parser.add_argument("--rgb-weights", default="random")
    parser.add_argument("--rgb-layers", type=int)
    parser.add_argument("--point-weights", default="random")
    parser.add_argument("--point-layers", type=int, nargs="+")
    parser.add_argument("--memory-limit-gib", type=float, default=8.0)
    parser.add_argument("--plain-steps", type=int, default=100)
    parser.add_argument("--results", type=Path, help="append the row here; default: print it")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="mmad-fast-bench-") as folder:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            fitted = pool.submit(measure_fit, arguments, Path(folder)).result()
        plain = measure_plain(Path(folder), arguments.plain_steps)
    seconds = fitted["coresets"][0]["seconds"]
    row = {
        "what": "m3dm_fit",
        "method": arguments.method,
        "data": f"{arguments.data.resolve().name}, scans repeated with noise",
        **fitted,
        "plain_coreset": plain,
        "coreset_ratio": plain["distinct_rows"]["seconds"] / seconds,
        "coreset_ratio_to_published": plain["dense_rows"]["seconds"] / seconds,
        "num_threads": get_num_threads(),
        "environment": environment(),
    }
    if arguments.results is None:
        print(json.dumps(row, indent=2))
        return
    with arguments.results.open("a") as file:
        file.write(json.dumps(row) + "\n")


class StageTimes:
    """Seconds per stage of a fit: a report ends work on the stage that it names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def report(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if stage not in self.seconds:
            print(f"{stage} ({total})", file=sys.stderr, flush=True)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def skip(self, seconds: float) -> None:
        """Leaves out what the measurement itself has taken."""
        self._last += seconds


class RecordedCoreset:
    """The greedy of the fit, each call timed; rows and result of the first are kept for the plain
    one."""

    def __init__(self, greedy: Callable[..., NDArray[np.int64]], folder: Path, times: StageTimes):
        self.calls: list[dict[str, Any]] = []
        self._greedy = greedy
        self._folder = folder
        self._times = times

    def __call__(self, rows: NDArray[np.float32], num_samples: int, **options: Any) -> NDArray:
        start = time.perf_counter()
        taken = self._greedy(rows, num_samples, **options)
        end = time.perf_counter()
        if not self.calls:
            np.save(self._folder / "rows.npy", rows)
            np.save(self._folder / "taken.npy", taken)
        self.calls.append(
            {
                "distinct_rows": len(rows),
                "width": rows.shape[1],
                "samples": num_samples,
                "seconds": end - start,
            }
        )
        self._times.skip(time.perf_counter() - end)
        return taken


def measure_fit(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time by stage and peak memory of the fit, in a process that runs nothing else."""
    limit = int(arguments.memory_limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    dataset = open_dataset(arguments.data)
    category = pick_category(dataset, arguments.category)
    layers = arguments.point_layers
    options = M3dmFitOptions(
        method=arguments.method,
        uff=arguments.uff,
        rgb_backbone=arguments.rgb_backbone,
        rgb_weights=arguments.rgb_weights,
        rgb_layers=arguments.rgb_layers,
        point_weights=arguments.point_weights,
        point_layers=None if layers is None else tuple(layers),
    )
    train: Sequence[Any] = moved(dataset.scans(category, "train"), arguments.num_scans)
    times = StageTimes()
    recorded = RecordedCoreset(memory_banks.k_center_greedy, folder, times)
    memory_banks.k_center_greedy = recorded
    fit_m3dm(
        train,
        dataset.scans(category, "validation"),
        folder / "detector",
        options,
        progress=times.report,
    )
    times.report("writing", 1, 1)
    weights = {
        "rgb": arguments.rgb_weights,
        "point": arguments.point_weights,
        "uff": arguments.uff,
    }
    return {
        "num_scans": arguments.num_scans,
        "weights": {name: Path(given).name for name, given in weights.items()},
        "seconds": sum(times.seconds.values()),
        "stage_s": times.seconds,
        "process_peak_mib": process_peak_mib(),
        "memory_limit_mib": limit / 2**20,
        "bank_mib": (folder / "detector" / "tensors.safetensors").stat().st_size / 2**20,
        "coresets": recorded.calls,
    }


def moved(files: Sequence[ScanFile], num_scans: int) -> list[MovedScan]:
    return [MovedScan(files[index % len(files)], index) for index in range(num_scans)]


def measure_plain(folder: Path, num_steps: int) -> dict[str, Any]:
    """The published greedy in plain torch, float32, on the projected rows of the point bank: on the
    distinct ones, as the fit has them, and on the dense ones."""
    rows, taken = np.load(folder / "rows.npy"), np.load(folder / "taken.npy")
    num_steps = min(num_steps, len(taken) - 1)
    distinct = time_plain(torch.from_numpy(rows), num_steps, len(taken))
    equal = int((np.array(distinct.pop("chosen")) == taken[: num_steps + 1]).sum())
    repeated = np.arange(10 * len(taken)) % len(rows)  # which ones is all the same to the time
    dense = time_plain(torch.from_numpy(rows[repeated]), num_steps, len(taken))
    del dense["chosen"]
    return {"distinct_rows": {**distinct, "equal_indices": equal}, "dense_rows": dense}


def time_plain(rows: torch.Tensor, num_steps: int, num_samples: int) -> dict[str, Any]:
    """Seconds of one step and of all, and the rows chosen."""
    nearest = torch.linalg.norm(rows - rows[0], dim=1)
    steps, chosen = [], [0]
    for _ in range(num_steps):
        start = time.perf_counter()
        chosen.append(int(torch.argmax(nearest)))
        distances = torch.linalg.norm(rows - rows[chosen[-1]], dim=1)
        nearest = torch.minimum(nearest, distances)
        steps.append(time.perf_counter() - start)
    return {
        "rows": len(rows),
        "measured_steps": num_steps,
        "step_s": statistics.median(steps),
        "seconds": statistics.median(steps) * (num_samples - 1),
        "is_extrapolated": num_steps < num_samples - 1,
        "chosen": chosen,
    }


if __name__ == "__main__":
    main()
