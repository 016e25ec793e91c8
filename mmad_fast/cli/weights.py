"""`mmad-fast weights`: the backbones' official checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmad_fast.cli.options import Json
from mmad_fast.cli.output import notice, print_json, print_table


def weights(
    download: Annotated[
        list[str] | None,
        typer.Option("--download", help="Download this checkpoint into the cache; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the official checkpoints and where they lie; download them.

    Example: mmad-fast weights

    Example: mmad-fast weights --download dino-vitb8
    """
    from mmad_fast.backbones.weights import known_weights, resolve_weights

    for name in download or ():
        source = resolve_weights(name, "auto")
        notice(f"{name}: {source.path}")
    records = [_record(entry) for entry in known_weights()]
    if as_json:
        print_json({"weights": records})
        return
    from rich.table import Table

    table = Table("name", "file", "size", "in the cache", "url")
    for record in records:
        size = "-" if record["size_mib"] is None else f"{record['size_mib']:.0f} MiB"
        table.add_row(record["name"], record["file"], size, record["path"] or "no", record["url"])
    print_table(table)


def _record(entry: Any) -> dict[str, Any]:
    return {
        "name": entry.name,
        "file": entry.file_name,
        "url": entry.url,
        "size_mib": None if entry.size_bytes is None else entry.size_bytes / 2**20,
        "path": None if entry.cached_path is None else str(entry.cached_path),
    }
