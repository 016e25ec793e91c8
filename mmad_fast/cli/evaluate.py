"""`mmad-fast eval`: accuracy and speed of an artifact on a labelled data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmad_fast.cli.options import (
    Aupro,
    AuproMode,
    Device,
    Engine,
    EnginePrecision,
    Json,
    Missing,
    Threads,
    Trust,
    UnitName,
    UnitOption,
    apply_threads,
)
from mmad_fast.cli.output import notice, print_json, print_table, progress_bar


def evaluate(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder from `mmad-fast fit`.")],
    data: Annotated[Path, typer.Option("--data", help="Data set with a test split.")],
    category: Annotated[
        str | None, typer.Option("--category", help="Which category of the data set.")
    ] = None,
    aupro: Aupro = AuproMode.published,
    unit: UnitOption = UnitName.m,
    missing: Missing = None,
    engine: Engine = "auto",
    engine_precision: EnginePrecision = None,
    device: Device = "cpu",
    threads: Threads = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Evaluate an artifact on the test split: I-AUROC, P-AUROC, AUPRO, speed, memory.

    Without masks there is no P-AUROC and no AUPRO, without scans of good and of other parts no
    I-AUROC; what is missing is said.

    Example: mmad-fast eval runs/bagel --data mvtec3d --category bagel
    """
    apply_threads(threads)
    from mmad_fast.data.dataset import open_dataset
    from mmad_fast.data.selection import pick_category
    from mmad_fast.detector import load
    from mmad_fast.measure.detector_row import MeasureRequest, measure_artifact
    from mmad_fast.measure.environment import environment
    from mmad_fast.measure.tables import render_rows, rows_to_json

    dataset = open_dataset(data)
    request = MeasureRequest(
        aupro_mode=aupro.value,
        engine=engine,
        device=device,
        engine_precision=engine_precision,
        unit=unit.value,
        missing=missing,
    )
    detector = load(artifact, engine=engine, device=device, precision=engine_precision, trust=trust)
    with progress_bar("eval") as update:
        row = measure_artifact(
            detector, dataset, pick_category(dataset, category), request, progress=update
        )
    if as_json:
        print_json(rows_to_json([row], environment()))
    else:
        print_table(*render_rows([row]))
    for note in row.notes or ():
        notice(f"note: {note}")
