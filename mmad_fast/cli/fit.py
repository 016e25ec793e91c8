"""`mmad-fast fit`: make a detector artifact from nominal scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mmad_fast.cli.options import (
    DEFAULT_METHOD,
    Json,
    Method,
    Missing,
    Recipe,
    Seed,
    Shots,
    Speed,
    Threads,
    UnitName,
    UnitOption,
    apply_threads,
)
from mmad_fast.cli.output import notice, print_json, progress_bar


def fit(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the artifact.")],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Data set, or one category's folder."),
    ] = None,
    data_option: Annotated[
        Path | None, typer.Option("--data", help="The same as DATA, as an option.")
    ] = None,
    method: Method = DEFAULT_METHOD,
    category: Annotated[
        str | None, typer.Option("--category", help="Which category of the data set.")
    ] = None,
    quantile: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Quantile of the validation scores as threshold."),
    ] = 0.99,
    recipe: Recipe = None,
    speed: Speed = "exact",
    shots: Shots = None,
    seed: Seed = 0,
    unit: UnitOption = UnitName.m,
    missing: Missing = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="File in which the training keeps its state until the artifact is written. After "
            "a kill the same command goes on from there.",
        ),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
    *,
    chosen: Mapping[str, str],
) -> None:
    """Fit a detector on nominal scans and write its artifact.

    The options at the end are those of the method: name another with --method to see its own.

    Example: mmad-fast fit mvtec3d --category bagel --output runs/bagel
    """
    given = [path for path in (data, data_option) if path is not None]
    if len(given) != 1:
        raise typer.BadParameter(
            f"{'both' if given else 'neither'} given; name the data set once, as DATA or with "
            "--data",
            param_hint="DATA, --data",
        )
    apply_threads(threads)
    from mmad_fast.methods.fit_request import FitRequest
    from mmad_fast.methods.fit_run import fit_detector
    from mmad_fast.threshold import describe_threshold

    request = FitRequest.of(
        method,
        threshold_quantile=quantile,
        seed=seed,
        unit=unit.value,
        missing=missing,
        recipe=recipe,
        speed=speed,
        shots=shots,
        **chosen,
    )
    with progress_bar("fit") as update:
        detector = fit_detector(
            given[0],
            output,
            category=category,
            request=request,
            checkpoint=checkpoint,
            progress=update,
        )
    manifest = detector.artifact.manifest
    if as_json:
        print_json(
            {
                "artifact": str(output),
                "method": manifest.method,
                "threshold": manifest.threshold.to_dict() if manifest.threshold else None,
                "threshold_note": describe_threshold(manifest.threshold),
                "weights": manifest.weights,
            }
        )
        return
    for role, source in detector.weight_sources.items():
        if source["kind"] == "random":
            notice(f"note: the {role} weights are random; accuracy means nothing")
    notice(f"wrote {output} ({manifest.method})")
    notice(describe_threshold(manifest.threshold))
    notice(f"next: mmad-fast infer {output} SCAN_OR_FOLDER --output results")
