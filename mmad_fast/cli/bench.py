"""`mmad-fast bench`: fit, evaluate and time a method, beside its published figures."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mmad_fast.cli.interrupts import Interrupted, finish, uninterrupted
from mmad_fast.cli.options import (
    DEFAULT_METHOD,
    Aupro,
    AuproMode,
    DataPath,
    Device,
    Engine,
    EnginePrecision,
    FewShot,
    Json,
    Method,
    Missing,
    Recipe,
    Seed,
    Speed,
    Threads,
    UnitName,
    UnitOption,
    apply_threads,
    parse_shots,
)
from mmad_fast.cli.output import notice, print_json, print_table, progress_bar


class Protocol(str, Enum):
    paper = "paper"
    end_to_end = "end-to-end"


class Comparison(str, Enum):
    reference = "reference"


def bench(
    method: Method = DEFAULT_METHOD,
    data: DataPath = None,
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Only this category; repeatable.")
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            "--protocol",
            help="end-to-end: raw arrays to score, peak memory; paper: prepared scan to "
            "smoothed map, parameters only as memory.",
        ),
    ] = Protocol.end_to_end,
    speed_only: Annotated[
        bool, typer.Option("--speed-only", help="Skip accuracy, and training that it alone needs.")
    ] = False,
    compare: Annotated[
        Comparison | None,
        typer.Option("--compare", help="Add rows of the published pipeline, in the same run."),
    ] = None,
    aupro: Aupro = AuproMode.published,
    recipe: Recipe = None,
    speed: Speed = "exact",
    few_shot: FewShot = None,
    seed: Seed = 0,
    unit: UnitOption = UnitName.m,
    missing: Missing = None,
    engine: Engine = "auto",
    engine_precision: EnginePrecision = None,
    device: Device = "cpu",
    threads: Threads = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the fitted artifacts here.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", help="Append each row to this JSONL file as soon as it is made."),
    ] = None,
    as_json: Json = False,
    *,
    chosen: Mapping[str, str],
) -> None:
    """Fit, evaluate and time a method; print its row beside the published one.

    Without --data it makes a procedural set in the cache and works offline. The options at the end
    are those of the method: name another with --method to see its own.

    Example: mmad-fast bench

    Example: mmad-fast bench --data mvtec3d --category bagel --compare reference

    Example: mmad-fast bench --data mvtec3d --few-shot 5,10,50
    """
    apply_threads(threads)
    from mmad_fast.measure.benchmark import run_benchmark
    from mmad_fast.measure.detector_row import MeasureRequest
    from mmad_fast.measure.environment import environment
    from mmad_fast.measure.tables import (
        BenchRow,
        append_jsonl,
        check_results_file,
        render_rows,
        rows_to_json,
    )
    from mmad_fast.methods.fit_request import FitRequest

    fit_request = FitRequest.of(
        method, seed=seed, unit=unit.value, missing=missing, recipe=recipe, speed=speed, **chosen
    )
    measure_request = MeasureRequest(
        protocol=protocol.value,
        aupro_mode=aupro.value,
        engine=engine,
        device=device,
        engine_precision=engine_precision,
        unit=unit.value,
        missing=missing,
        speed_only=speed_only,
        compare_reference=compare is not None,
        few_shot=parse_shots(few_shot),
    )
    if results is not None:
        check_results_file(results)

    rows: list[BenchRow] = []

    def keep(row: BenchRow) -> None:
        with uninterrupted():
            rows.append(row)
            if results is not None:
                append_jsonl(results, row, environment())

    stop: Interrupted | None = None
    try:
        with progress_bar("bench") as update:
            rows = run_benchmark(
                data,
                tuple(category or ()),
                fit_request,
                measure_request,
                output=output,
                progress=update,
                notice=notice,
                on_row=keep,
            )
    except Interrupted as interrupted:
        stop = interrupted
    with uninterrupted():
        if as_json:
            interruption = None if stop is None else str(stop)
            print_json({**rows_to_json(rows, environment()), "interrupted": interruption})
        else:
            print_table(*render_rows(rows))
        for row in rows:
            for note in row.notes or ():
                notice(f"note: {row.category}: {note}")
        if stop is not None:
            notice(f"{stop}; the rows of what was measured are printed")
        finish()  # within: a signal that comes now finds all printed, and must not add to it
        raise typer.Exit(0 if stop is None else stop.exit_code)
