"""`mmad-fast train-shared`: what a method trains once for all categories of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mmad_fast.cli.method_options import command_line
from mmad_fast.cli.options import (
    Json,
    Method,
    Recipe,
    Seed,
    Threads,
    UnitName,
    UnitOption,
    apply_threads,
)
from mmad_fast.cli.output import notice, print_json, print_table, progress_bar
from mmad_fast.methods.family import families

SHARING = tuple(
    variant.name
    for family in families()
    for variant in family.variants
    if family.shared_training is not None
    and family.shared_training.wants(family.options(**variant.values).with_constants())
)
"""The methods that train something for several categories."""


def train_shared(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Data set with training scans.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the weights.")],
    category: Annotated[
        list[str] | None,
        typer.Option("--category", help="Only this category; repeatable; default: all."),
    ] = None,
    method: Method = SHARING[0],
    recipe: Recipe = None,
    seed: Seed = 0,
    unit: UnitOption = UnitName.m,
    threads: Threads = None,
    as_json: Json = False,
    *,
    chosen: Mapping[str, str],
) -> None:
    """Train what a method shares between all categories of a data set, as published.

    Its options must be those of the detectors that will use it. Not every method has such a part.

    Example: mmad-fast train-shared mvtec3d --method METHOD --output shared.safetensors
    """
    apply_threads(threads)
    from mmad_fast.data.dataset import open_dataset
    from mmad_fast.data.selection import pick_category
    from mmad_fast.errors import InvalidInputError
    from mmad_fast.methods.family import get_method
    from mmad_fast.methods.fit_request import FitRequest
    from mmad_fast.methods.fit_run import check_fit_packages

    check_fit_packages()
    shared = get_method(method)[0].shared_training
    if shared is None:
        raise InvalidInputError(
            f"{method} trains nothing for several categories; methods that do: {', '.join(SHARING)}"
        )
    request = FitRequest.of(method, seed=seed, unit=unit.value, recipe=recipe, **chosen)
    dataset = open_dataset(data)
    categories = tuple(pick_category(dataset, name) for name in category or dataset.categories())
    with progress_bar("train-shared") as update:
        trained = shared.train(dataset, categories, request, output, update)
    if as_json:
        facts = {"path": str(output), "categories": list(categories)}
        print_json({**facts, shared.option: trained.to_dict()})
        return
    from rich.table import Table

    title, columns, rows = trained.table()
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    print_table(table)
    notice(f"wrote {output} ({', '.join(categories)})")
    given = {"data": str(data), "method": method, "seed": str(seed), "unit": unit.value}
    given |= {} if recipe is None else {"recipe": recipe}
    given |= {**chosen, shared.option: str(output)}
    notice(f"next: {command_line('mmad-fast bench', given)}")
