"""Writes docs/benchmarks/cpu.md from the rows of bench/peers: no figure is typed by hand.

python bench/tables/peers.py            # rewrites the page
python bench/tables/peers.py --check    # exit code 1 if the page would change
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmad_fast.measure.generated_pages import write_pages

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "cpu.md"
RESULTS = ROOT / "bench" / "results" / "peers.jsonl"

Row = Mapping[str, Any]
OURS = "mmad-fast"


@dataclass(frozen=True)
class Target:
    """What was aimed at.

    Attributes:
        ratio: At least, of a peer's time to ours; with `is_limit` at most, of ours to the other's.
        against: Which peer; None is the fastest.
        only: Sizes, or words in the name of the data, for which it holds.
    """

    ratio: float
    against: str | None = None
    only: Mapping[str, tuple[Any, ...]] | None = None
    is_limit: bool = False

    def applies(self, row: Row) -> bool:
        if self.only is None:
            return True
        facts = {**row["shapes"], "data": row["data"].split()[0]}
        return all(facts.get(name) in allowed for name, allowed in self.only.items())


@dataclass(frozen=True)
class Section:
    """One op's part of the page.

    Attributes:
        sizes: Letters of the columns that tell the cases apart.
        main: Sizes that a case of the main table has; the others only show how cost grows.
        growth: Letters for which cost growth is shown.
    """

    what: str
    title: str
    sizes: tuple[str, ...]
    targets: tuple[Target, ...]
    main: Mapping[str, tuple[Any, ...]] | None = None
    growth: tuple[str, ...] = ()


LARGE_CLOUDS = {"N": (13_000, 50_000, 200_000)}
FULL_BANK = {"Q": (3136,), "M": (76_518,)}
SECTIONS = (
    Section(
        "farthest_point_sampling",
        "Farthest point sampling",
        ("N", "G"),
        (Target(1.5, only=LARGE_CLOUDS),),
        main={"G": (1024,)},
        growth=("N", "G"),
    ),
    Section(
        "knn_grouping",
        "kNN grouping, index built anew",
        ("N", "G", "K"),
        (Target(2, only={"K": (128,)}),),
        main={"G": (1024,)},
        growth=("N", "G"),
    ),
    Section(
        "inverse_distance_weights",
        "Interpolation weights: the three nearest centres",
        ("N", "G"),
        (Target(2, "pykdtree", LARGE_CLOUDS),),
        growth=("N",),
    ),
    Section(
        "inverse_distance_interpolation",
        "Interpolated features, dense",
        ("N", "G", "C"),
        (Target(1.5, "writing the output", is_limit=True),),
    ),
    Section(
        "nearest_neighbor_scoring",
        "Nearest-neighbour scoring, bank given beforehand",
        ("Q", "M", "C"),
        (
            Target(1.5, "faiss flat", {**FULL_BANK, "data": ("features",)}),
            Target(0.95, "faiss flat", {**FULL_BANK, "data": ("random",)}),
        ),
        main={"M": (7_651, 76_518)},
        growth=("M", "Q"),
    ),
    Section(
        "pixel_mapping",
        "Pixel mapping, both directions",
        ("P",),
        (Target(7, "torch eager, dense", {"P": (14_049,)}),),
        growth=("P",),
    ),
    Section(
        "point_embedding",
        "Point embedder",
        ("batch_norm", "G", "K"),
        (Target(1.4, only={"K": (128,), "batch_norm": ("cloud",)}),),
    ),
)
HEAD = """\
# CPU kernels and their peers

Made by `bench/tables/peers.py` from `bench/results/peers.jsonl`, which `bench/peers` measures.

Median milliseconds per call. What stands in one line was measured in one run, in turns (A B C A B
C ...), warm, with the same number of threads on the same arrays, after every result had been
compared with ours. The fastest peer is **bold**; `ratio` is its time divided by ours. `–`: not
timed, for the reason given below the table. Columns in *italics* do a part of the job.
"""


def latest_cases(lines: Iterable[str]) -> list[list[Row]]:
    """The rows of each case, of the last run where it was measured several times."""
    cases: dict[str, dict[str, list[Row]]] = {}
    for line in lines:
        row = json.loads(line)
        key = json.dumps([row["what"], row["data"], row["shapes"], row["threads"]])
        cases.setdefault(key, {}).setdefault(row["case"], []).append(row)
    return [runs[max(runs)] for runs in cases.values()]


def render(cases: Sequence[Sequence[Row]]) -> str:
    """The page in Markdown."""
    parts = [HEAD]
    if not cases:
        parts.append("No rows yet: `make peers` measures them.\n")
    for section in SECTIONS:
        own = [rows for rows in cases if rows[0]["what"] == section.what]
        if own:
            parts.append(_section(section, sorted(own, key=lambda rows: _order(section, rows))))
    if cases:
        parts.append("\n".join(["## Machine", *_machines(cases), ""]))
    return "\n".join(parts)


def _order(section: Section, rows: Sequence[Row]) -> tuple[Any, ...]:
    return (rows[0]["data"], *(rows[0]["shapes"][letter] for letter in section.sizes))


def _section(section: Section, cases: Sequence[Sequence[Row]]) -> str:
    main = [rows for rows in cases if _is_main(section, rows[0])]
    names = list(dict.fromkeys(row["backend"] for rows in main for row in rows))
    kinds = {row["backend"]: row for rows in main for row in rows}
    ours = [name for name in names if kinds[name]["is_ours"]]
    titles = [f"*{name}*" if kinds[name]["part"] else name for name in names]
    ratios = ["ratio" if name == OURS else f"ratio,{name.partition(',')[2]}" for name in ours]
    lines = [f"## {section.title}", "", *_head("data", *section.sizes, *titles, *ratios, "target")]
    for rows in main:
        fastest = fastest_peer(rows)
        by_name = {row["backend"]: row for row in rows}
        cells = [rows[0]["data"], *(f"{rows[0]['shapes'][letter]}" for letter in section.sizes)]
        cells += [_time_cell(by_name.get(name), fastest) for name in names]
        cells += [_ratio_cell(by_name.get(name), fastest) for name in ours]
        cells.append(_target_cell(section, rows))
        lines.append(_line(cells))
    lines += ["", *_notes(names, main)]
    for letter in section.growth:
        lines += _growth(section, letter, cases)
    return "\n".join(lines)


def _is_main(section: Section, row: Row) -> bool:
    wanted = section.main or {}
    return all(row["shapes"][letter] in sizes for letter, sizes in wanted.items())


def _head(*titles: str) -> list[str]:
    return [_line(titles), "|" + "---|" * len(titles)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def fastest_peer(rows: Sequence[Row]) -> Row | None:
    """The fastest that does the whole job and is not ours."""
    peers = [r for r in rows if r["p50_ms"] and not r["is_ours"] and not r["part"]]
    return min(peers, key=lambda row: row["p50_ms"], default=None)


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _time_cell(row: Row | None, fastest: Row | None) -> str:
    if row is None or row["p50_ms"] is None:
        return "–"
    text = _milliseconds(row["p50_ms"])
    if row["parameter"]:
        text += f" ({row['parameter']})"
    return f"**{text}**" if row is fastest else text


def _ratio_cell(ours: Row | None, fastest: Row | None) -> str:
    if ours is None or fastest is None or ours["p50_ms"] is None:
        return "–"
    return f"{fastest['p50_ms'] / ours['p50_ms']:.2f}x"


def _target_cell(section: Section, rows: Sequence[Row]) -> str:
    by_name = {row["backend"]: row for row in rows}
    ours = by_name[OURS]
    for target in section.targets:
        other = by_name.get(target.against) if target.against else fastest_peer(rows)
        if not target.applies(ours) or other is None or other["p50_ms"] is None:
            continue
        ratio = other["p50_ms"] / ours["p50_ms"]
        reached = 1 / ratio if target.is_limit else ratio
        is_met = reached <= target.ratio if target.is_limit else reached >= target.ratio
        sign, times = ("≤", " of") if target.is_limit else ("≥", "")
        against = f"{times} {target.against}" if target.against else ""
        verdict = "met" if is_met else "missed"
        return f"{sign} {target.ratio:g}x{against}: {reached:.2f}x, {verdict}"
    return "–"


def _notes(names: Sequence[str], cases: Sequence[Sequence[Row]]) -> list[str]:
    """One line per contender: how its result agrees, what it leaves out, why it was not timed."""
    lines = []
    for name in names:
        rows = [row for case in cases for row in case if row["backend"] == name]
        notes = {row["note"] for row in rows}
        refusals = {row["refusal"]: row["detail"] for row in reversed(rows) if row["refusal"]}
        found = [
            *(row["part"] for row in rows),
            *(row["agreement"] for row in rows if not row["is_ours"]),
            *(notes if len(notes) == 1 else ()),
            *(
                f"not timed: {refusal} ({detail})" if detail else f"not timed: {refusal}"
                for refusal, detail in refusals.items()
            ),
        ]
        said = [text for text in dict.fromkeys(found) if text]
        if said:
            lines.append(f"- {name}: {'; '.join(said)}.")
    return [*lines, ""] if lines else []


def slope(sizes: Sequence[float], times_ms: Sequence[float]) -> float:
    """The exponent e of time ~ size^e: the slope of the straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(times_ms), 1)[0])


def _growth(section: Section, letter: str, cases: Sequence[Sequence[Row]]) -> list[str]:
    """Time against one size, the others fixed; ours and the fastest peer, three sizes or more."""
    series: dict[tuple[str, ...], dict[int, Sequence[Row]]] = {}
    for rows in cases:
        others = (
            f"{other}={rows[0]['shapes'][other]}" for other in section.sizes if other != letter
        )
        key = (rows[0]["data"], ", ".join(others))
        series.setdefault(key, {})[rows[0]["shapes"][letter]] = rows
    series = {key: by_size for key, by_size in series.items() if len(by_size) >= 3}
    if not series:
        return []
    sizes = sorted({size for by_size in series.values() for size in by_size})
    columns = (f"{letter}={size}" for size in sizes)
    lines = [f"Growth with {letter}, ms:", "", *_head("data", "fixed", "who", *columns, "slope")]
    for (data, fixed), by_size in series.items():
        for name in _growing(by_size):
            times = {
                size: row["p50_ms"]
                for size, rows in by_size.items()
                for row in rows
                if row["backend"] == name and row["p50_ms"]
            }
            cells = [_milliseconds(times[size]) if size in times else "–" for size in sizes]
            exponent = f"{slope(list(times), list(times.values())):.2f}" if len(times) > 2 else "–"
            lines.append(_line([data, fixed or "–", name, *cells, exponent]))
    return [*lines, ""]


def _growing(by_size: Mapping[int, Sequence[Row]]) -> list[str]:
    """Ours, and the fastest peer at the largest size."""
    rows = by_size[max(by_size)]
    fastest = fastest_peer(rows)
    ours = [row["backend"] for row in rows if row["is_ours"]]
    return ours + ([fastest["backend"]] if fastest else [])


def _machines(cases: Sequence[Sequence[Row]]) -> list[str]:
    """On what the rows were measured; a line per machine, set of versions, commit and day."""
    lines = []
    for rows in cases:
        facts = rows[0]["environment"]
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        changed = "" if facts["commit_is_clean"] else " (with changes)"
        lines.append(
            f"- {facts['cpu']}, {rows[0]['threads']} threads; {versions}; mmad-fast "
            f"{facts['mmad_fast']} at {str(facts['commit'])[:10]}{changed}, {facts['date'][:10]}."
        )
    return ["", *dict.fromkeys(lines)]


def render_pages() -> dict[Path, str]:
    """The page by its file."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {PAGE: render(latest_cases(lines))}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render_pages))
