"""The numbers that the papers print, as data: published.csv, one value per line with its source."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

MVTEC_3D_AD = "MVTec 3D-AD"
EYECANDIES = "Eyecandies"

_OF_ANY_DATA = ("fps", "memory_mb")
"""Metrics that are printed with one data set, and say as much of another."""


@dataclass(frozen=True)
class PublishedRow:
    """One printed value. Where sources disagree, each has its own row.

    Attributes:
        method: As the paper's method, with its setting in brackets, e.g. "M3DM (5-shot)".
        source: Paper and table, e.g. "CFM paper, Table 5".
        gpu: The GPU that the source names, else "not named".
        dataset: "MVTec 3D-AD" or "Eyecandies".
        metric: i_auroc, p_auroc, i_aupr, p_aupr (areas under the precision-recall curve), aupro_30,
            aupro_10, aupro_5, aupro_1, fps, memory_mb (CFM: equal to the bytes of the parameters),
            memory_bank_gb or training_gpu_hours.
        category: A category as the data set names it, or "mean".
        value: As printed; percentages as fractions.
    """

    method: str
    source: str
    gpu: str
    dataset: str
    metric: str
    category: str
    value: float

    @property
    def paper(self) -> str:
        """The source without its table, e.g. "CFM paper"."""
        return self.source.partition(",")[0]


@cache
def load_published() -> tuple[PublishedRow, ...]:
    """All published values, in the order of the file."""
    text = resources.files("mmad_fast.measure").joinpath("published.csv").read_text("utf-8")
    lines: Iterable[dict[str, Any]] = csv.DictReader(text.splitlines())
    return tuple(PublishedRow(**line | {"value": float(line["value"])}) for line in lines)


def published_for(
    method: str, *, dataset: str = MVTEC_3D_AD, category: str = "mean"
) -> tuple[PublishedRow, ...]:
    """What the papers print of one method, each distinct value of a paper once; empty if nothing.

    Speed and memory are printed once per method; they are included for any data set and category.

    Args:
        method: The published name, e.g. "CFM-S" (methods.family.Variant.published).
        dataset: "MVTec 3D-AD" or "Eyecandies".
        category: A category of the data set, or "mean".
    """
    wanted = [
        row
        for row in load_published()
        if row.method == method
        and ((row.dataset == dataset and row.category == category) or row.metric in _OF_ANY_DATA)
    ]
    return _distinct(wanted)


def published_beside(method: str, category: str) -> tuple[PublishedRow, ...]:
    """What the papers print of one method for a category of whichever data set; the mean where they
    print none for it or it is no category of theirs, of MVTec 3D-AD rather than of Eyecandies.

    Args:
        method: The published name.
        category: A category's folder.
    """
    is_eyecandies = (EYECANDIES, category) in {(r.dataset, r.category) for r in load_published()}
    datasets = (MVTEC_3D_AD, EYECANDIES)
    if is_eyecandies and category != "mean":
        datasets = (EYECANDIES, MVTEC_3D_AD)
    for dataset in datasets:
        for one in (category, "mean"):
            rows = published_for(method, dataset=dataset, category=one)
            if any(row.metric not in _OF_ANY_DATA for row in rows):
                return rows
    return ()


def _distinct(rows: Iterable[PublishedRow]) -> tuple[PublishedRow, ...]:
    """The first of the rows that say the same in the same paper."""
    first: dict[tuple[str, str, float], PublishedRow] = {}
    for row in rows:
        first.setdefault((row.paper, row.metric, row.value), row)
    return tuple(first.values())
