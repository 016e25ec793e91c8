"""`mmad-fast fit`: make a detector artifact from nominal scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmad_fast.cli.options import (
    Aggregation,
    BatchNorm,
    Epochs,
    GroupSize,
    Json,
    Mapping,
    Method,
    NumGroups,
    PixelStride,
    PointLayers,
    PointWeights,
    Precision,
    Recipe,
    RgbBackbone,
    RgbLayers,
    RgbWeights,
    Seed,
    Settings,
    Shots,
    Speed,
    Threads,
    UnitName,
    UnitOption,
    apply_threads,
    parse_layers,
    parse_settings,
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
    method: Method = "cfm-s",
    category: Annotated[
        str | None, typer.Option("--category", help="Which category of the data set.")
    ] = None,
    rgb_backbone: RgbBackbone = None,
    rgb_weights: RgbWeights = "auto",
    point_weights: PointWeights = "auto",
    rgb_layers: RgbLayers = None,
    point_layers: PointLayers = None,
    quantile: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Quantile of the validation scores as threshold."),
    ] = 0.99,
    recipe: Recipe = None,
    num_groups: NumGroups = None,
    group_size: GroupSize = None,
    batch_norm: BatchNorm = None,
    aggregation: Aggregation = None,
    mapping: Mapping = None,
    speed: Speed = "exact",
    pixel_stride: PixelStride = None,
    precision: Precision = None,
    epochs: Epochs = None,
    settings: Settings = None,
    shots: Shots = None,
    seed: Seed = 0,
    unit: UnitOption = UnitName.m,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fit a detector on nominal scans and write its artifact.

    Example: mmad-fast fit mvtec3d --category bagel --method cfm-s --output runs/bagel

    Example: mmad-fast fit mvtec3d --category bagel --method m3dm --set point_patches=28x28
    --output runs/bagel
    """
    root = _one_of(data, data_option)
    apply_threads(threads)
    from mmad_fast.methods.fitting import FitRequest, fit_detector

    request = FitRequest(
        method=method,
        rgb_backbone=rgb_backbone,
        rgb_weights=rgb_weights,
        point_weights=point_weights,
        rgb_layers=rgb_layers,
        point_layers=parse_layers(point_layers),
        threshold_quantile=quantile,
        epochs=epochs,
        seed=seed,
        unit=unit.value,
        recipe=recipe,
        num_groups=num_groups,
        group_size=group_size,
        batch_norm=batch_norm,
        aggregation=aggregation,
        mapping=mapping,
        pixel_stride=pixel_stride,
        precision=precision,
        speed=speed,
        shots=shots,
        options=parse_settings(settings),
    )
    with progress_bar("fit") as update:
        detector = fit_detector(root, output, category=category, request=request, progress=update)
    manifest = detector.artifact.manifest
    if as_json:
        print_json(
            {
                "artifact": str(output),
                "method": manifest.method,
                "threshold": manifest.threshold,
                "weights": manifest.weights,
            }
        )
        return
    for role, source in manifest.weight_sources.items():
        if source["kind"] == "random":
            notice(f"note: the {role} weights are random; accuracy means nothing")
    notice(f"wrote {output} ({manifest.method}, threshold {detector.threshold:.4g})")
    notice(f"next: mmad-fast infer {output} SCAN_OR_FOLDER --output results")


def _one_of(data: Path | None, data_option: Path | None) -> Path:
    """The data set, named exactly once.

    Raises:
        BadParameter: wrong usage, exit code 2.
    """
    if data is not None and data_option is None:
        return data
    if data is None and data_option is not None:
        return data_option
    given = "neither" if data is None else "both"
    raise typer.BadParameter(
        f"{given} given; name the data set once, as DATA or with --data", param_hint="DATA, --data"
    )
