"""`mmad-fast synth`: write the procedural data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmad_fast.cli.options import Json, Seed
from mmad_fast.cli.output import notice, print_json, progress_bar


def synth(
    output: Annotated[Path, typer.Argument(help="New folder for the data set.")],
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Only this category; repeatable.")
    ] = None,
    train: Annotated[int, typer.Option(min=1, help="Nominal training scans per category.")] = 24,
    validation: Annotated[int, typer.Option(min=0, help="Nominal validation scans.")] = 4,
    good: Annotated[int, typer.Option(min=0, help="Nominal test scans.")] = 8,
    per_defect: Annotated[int, typer.Option(min=0, help="Test scans per defect type.")] = 5,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Side in pixels.")] = 256,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a procedural RGB + 3D set with defects, in MVTec 3D-AD layout.

    Example: mmad-fast synth data/procedural --category biscuit --train 40
    """
    from mmad_fast.data.synthetic import CATEGORIES, write_synthetic

    categories = tuple(category) if category else CATEGORIES
    with progress_bar("writing scans") as update:
        path = write_synthetic(
            output,
            categories=categories,
            num_train=train,
            num_validation=validation,
            num_good=good,
            num_per_defect=per_defect,
            size=size,
            seed=seed,
            progress=lambda done, total: update(output.name, done, total),
        )
    if as_json:
        print_json({"path": str(path), "categories": list(categories)})
    else:
        notice(f"wrote {path} with {', '.join(categories)}")
        notice(
            f"next: mmad-fast fit {path} --category {categories[0]} --output runs/{categories[0]}"
        )
