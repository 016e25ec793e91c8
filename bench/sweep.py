"""Measures detectors as a file of settings says, bench/sweeps/NAME.toml, and appends a JSON line
per row to its results; `python bench/pages.py` makes the pages of them.

    python bench/sweep.py approximations --data rendered3d --set rgb_backbone=dinov2-vits14 \\
        --set rgb_weights=dinov2_vits14.safetensors --set point_weights=random --set rgb_layers=8 \\
        --set point_layers=[0]
    python bench/sweep.py configurations --data rendered3d --group few-shot ...
    python bench/sweep.py end_to_end --print      # what would be measured

Kinds of sweeps: "accuracy" fits and evaluates each setting on each category; "speed" times each
setting beside the published pipeline, in turns; "fit" measures a fit; "shared" what is trained once
for all categories; "exports" engines of other targets and precisions. --set replaces what the file
says of every fit. Rows that are there are not measured again, but those of speed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from detectors import RepeatedSet
from settings import BENCH, RESULTS, append_rows, read_toml

from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.data.selection import pick_category
from mmad_fast.errors import MmadFastError
from mmad_fast.measure.built_in_set import built_in_set
from mmad_fast.measure.environment import environment
from mmad_fast.measure.generated_pages import read_rows
from mmad_fast.threads import get_num_threads, set_num_threads

SWEEPS = BENCH / "sweeps"


@dataclass(frozen=True)
class Setting:
    """A detector that is fitted.

    Attributes:
        row: The columns that tell it from the others.
        fit: What differs from the other fits.
        more: What else its entry says.
    """

    row: Mapping[str, Any]
    fit: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)


class Results:
    """The rows of a results file: which are there, and new ones one by one."""

    def __init__(self, file: Path, key: list[str]) -> None:
        self.file, self._key = file, key
        self._start = time.perf_counter()
        self._done = {self.key_of(row) for row in read_rows(file)}

    def key_of(self, row: Mapping[str, Any]) -> str:
        return json.dumps([row.get(name) for name in self._key])

    def has(self, row: Mapping[str, Any]) -> bool:
        return self.key_of(row) in self._done

    def add(self, row: Mapping[str, Any]) -> None:
        append_rows(self.file, [{**row, "environment": environment()}])
        self._done.add(self.key_of(row))
        print(f"{time.perf_counter() - self._start:.0f} s {self.key_of(row)}", flush=True)


@dataclass(frozen=True)
class Sweep:
    """A file of settings, and what the command line says.

    Attributes:
        name: Its stem.
        content: The file.
        fit: What all fits share.
        dataset: The scans.
        categories: Those that are asked for.
        options: The command line.
        results: Where rows go.
    """

    name: str
    content: Mapping[str, Any]
    fit: Mapping[str, Any]
    dataset: Dataset
    categories: tuple[str, ...]
    options: argparse.Namespace
    results: Results

    @property
    def data(self) -> str:
        """The data set's name, as rows say it."""
        repeated = ", scans repeated with noise" if isinstance(self.dataset, RepeatedSet) else ""
        return f"{self.dataset.root.resolve().name}{repeated}"

    def settings(self) -> Iterator[Setting]:
        """The settings of the groups that are asked for; one for each of its `seeds`, and for each
        number of training scans in its `shots`, 0 being all. It takes what all fits share but for
        the names in its `without`; options that tell rows apart are columns of theirs."""
        for entry in self.content.get("settings", [{}]):
            if self.options.group and entry.get("group") not in self.options.group:
                continue
            own = ("row", "fit", "shots", "seeds", "without")
            more = {k: v for k, v in entry.items() if k not in own}
            shared = {k: v for k, v in self.fit.items() if k not in entry.get("without", [])}
            seeds = entry.get("seeds", [self.fit.get("seed", 0)])
            for shots, seed in product(entry.get("shots", [0]), seeds):
                fit = {**shared, **entry.get("fit", {}), "shots": shots or None}
                columns = {name: fit[name] for name in self.content.get("key", []) if name in fit}
                row = {**columns, "shots": shots or None, "seed": seed, **entry.get("row", {})}
                yield Setting(row, {**fit, "seed": row["seed"]}, more)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in SWEEPS.glob("*.toml") if "kind" in read_toml(path))
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--data", type=Path, help="default: the procedural set")
    parser.add_argument("--category", action="append", help="repeatable; default: all")
    parser.add_argument("--group", action="append", help="only these settings; repeatable")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of every fit; repeatable"
    )
    parser.add_argument("--num-train", type=int, help="repeat training scans, with noise, to these")
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument("--rounds", type=int, default=3, help="turns of a speed sweep")
    parser.add_argument("--runs", type=int, default=5, help="of each detector per turn")
    parser.add_argument("--before", nargs=2, metavar=("PYTHON", "ARTIFACT"), help="another version")
    parser.add_argument("--results", type=Path, help="default: the sweep's file in bench/results")
    parser.add_argument("--print", action="store_true", dest="prints", help="measure nothing")
    return parser.parse_args(arguments)


def parse_value(text: str) -> Any:
    """A value as TOML has it; other text is itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def open_sweep(options: argparse.Namespace) -> Sweep:
    """The sweep that the command line asks for."""
    content = read_toml(SWEEPS / f"{options.name}.toml")
    given = (assignment.partition("=") for assignment in options.set)
    fit = {**content.get("fit", {}), **{name: parse_value(text) for name, _, text in given}}
    dataset = open_dataset(options.data or built_in_set())
    asked = options.category or dataset.categories()
    categories = tuple(pick_category(dataset, name) for name in asked)
    if num_train := options.num_train or content.get("num_train"):
        dataset = RepeatedSet(**vars(dataset), num_train=num_train)
    results = Results(options.results or RESULTS / content["results"], content["key"])
    return Sweep(options.name, content, fit, dataset, categories, options, results)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    set_num_threads(options.threads)
    from exports import measure_exports
    from measures import measure_accuracy, measure_fit, measure_shared, measure_speed

    kinds = {
        "accuracy": measure_accuracy,
        "speed": measure_speed,
        "fit": measure_fit,
        "shared": measure_shared,
        "exports": measure_exports,
    }
    try:
        sweep = open_sweep(options)
        if options.prints:
            for setting in sweep.settings():
                print(json.dumps({"row": dict(setting.row), "fit": dict(setting.fit)}))
            return 0
        with tempfile.TemporaryDirectory(prefix="mmad-fast-bench-") as folder:
            kinds[sweep.content["kind"]](sweep, Path(folder))
    except MmadFastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
