"""`mmad-fast uff`: train M3DM's feature fusion once for all categories of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmad_fast.cli.options import (
    BatchNorm,
    GroupSize,
    Json,
    Method,
    NumGroups,
    PointLayers,
    PointWeights,
    Precision,
    Recipe,
    RgbBackbone,
    RgbLayers,
    RgbWeights,
    Seed,
    Settings,
    Threads,
    UnitName,
    UnitOption,
    apply_threads,
    parse_layers,
    parse_settings,
)
from mmad_fast.cli.output import notice, print_json, print_table, progress_bar


def uff(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Data set with training scans.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the weights, .safetensors.")
    ],
    category: Annotated[
        list[str] | None,
        typer.Option("--category", help="Only this category; repeatable; default: all."),
    ] = None,
    method: Method = "m3dm",
    rgb_backbone: RgbBackbone = None,
    rgb_weights: RgbWeights = "auto",
    point_weights: PointWeights = "auto",
    rgb_layers: RgbLayers = None,
    point_layers: PointLayers = None,
    recipe: Recipe = None,
    num_groups: NumGroups = None,
    group_size: GroupSize = None,
    batch_norm: BatchNorm = None,
    precision: Precision = None,
    updates: Annotated[
        int | None,
        typer.Option("--updates", min=1, help="Steps of the optimiser; default: the schedule's."),
    ] = None,
    settings: Settings = None,
    seed: Seed = 0,
    unit: UnitOption = UnitName.m,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train M3DM's unsupervised feature fusion, one for all categories, as published.

    Backbones, layers and patches must be those of the detectors that will use it. The schedule and
    the pairs of the public code's dumped features are --set uff_schedule=paper and
    --set uff_pairing=published_dump.

    Example: mmad-fast uff mvtec3d --output uff.safetensors, then
    mmad-fast fit mvtec3d --category bagel --method m3dm --set uff=uff.safetensors -o runs/bagel
    """
    apply_threads(threads)
    from mmad_fast.data.dataset import open_dataset
    from mmad_fast.data.selection import pick_category
    from mmad_fast.methods.fitting import FitRequest, check_fit_packages

    check_fit_packages()
    request = FitRequest(
        method=method,
        rgb_backbone=rgb_backbone,
        rgb_weights=rgb_weights,
        point_weights=point_weights,
        rgb_layers=rgb_layers,
        point_layers=parse_layers(point_layers),
        seed=seed,
        unit=unit.value,
        recipe=recipe,
        num_groups=num_groups,
        group_size=group_size,
        batch_norm=batch_norm,
        precision=precision,
        options=parse_settings(settings),
    )
    dataset = open_dataset(data)
    categories = tuple(pick_category(dataset, name) for name in category or dataset.categories())
    from mmad_fast.methods.m3dm.uff_categories import train_shared_uff

    with progress_bar("uff") as update:
        trained = train_shared_uff(
            dataset, categories, request, output, updates=updates, progress=update
        )
    if as_json:
        print_json({"path": str(output), "categories": list(categories), "uff": trained.to_dict()})
        return
    print_table(_alignment_table(trained))
    notice(f"wrote {output} ({', '.join(categories)})")
    notice(f"next: mmad-fast bench --data {data} --method {method} --set uff={output}")


def _alignment_table(trained: object) -> object:
    """How well a token finds its own point patches, before and after the training."""
    from rich.table import Table

    from mmad_fast.methods.m3dm.uff_categories import SharedUff

    assert isinstance(trained, SharedUff)
    plan = trained.record.plan
    table = Table(
        title=(
            f"Alignment on {trained.after.num_scans} {trained.measured_on} scans after "
            f"{plan.updates} updates on {trained.record.num_scans} scans"
        )
    )
    for name in ("network", "own token", "within one token", "by chance"):
        table.add_column(name)
    for name, accuracy in (("before", trained.before), ("after", trained.after)):
        shares = (accuracy.same_token, accuracy.within_one, accuracy.chance)
        table.add_row(name, *(f"{100 * share:.2f} %" for share in shares))
    return table
