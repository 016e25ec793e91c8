"""`mmad-fast kernels`: the Triton kernels, compiled ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmad_fast.cli.export import parse_sms
from mmad_fast.cli.options import Json, checked
from mmad_fast.cli.output import notice, print_json, print_table, progress_bar

app = typer.Typer(
    help="The Triton kernels: list them, compile them ahead of time.", no_args_is_help=True
)


@app.command("build")
def build(
    sm: Annotated[
        str,
        typer.Option(
            "--sm",
            help="Compute capabilities with commas, e.g. 89 for RTX 40 and L4.",
            callback=checked(parse_sms),
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", help="Folder; one of an earlier build is replaced.")
    ] = Path("kernels"),
    all_configs: Annotated[
        bool, typer.Option("--all-configs", help="Also what does not run by default.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile the kernels to cubins that load without torch and Triton; needs no GPU.

    Example: mmad-fast kernels build --sm 89

    Example: mmad-fast kernels build --sm 80,86,89 --output kernels
    """
    from mmad_fast.gpu.ahead_of_time import build_kernels
    from mmad_fast.gpu.kernel_folder import read_kernel_folder

    with progress_bar("compiling") as update:
        path = build_kernels(output, parse_sms(sm), all_configs=all_configs, progress=update)
    kernels = read_kernel_folder(path).kernels
    if as_json:
        rows = [{"kernel": k.name, "config": k.config, "sm": k.sm, "file": k.file} for k in kernels]
        print_json({"path": str(path), "kernels": rows})
    else:
        notice(f"wrote {path} with {len(kernels)} kernels for {sm}")


@app.command("list")
def list_kernels(as_json: Json = False) -> None:
    """List the kernels, and per compute capability the configuration that runs.

    Example: mmad-fast kernels list
    """
    from mmad_fast.gpu.ahead_of_time import kernels_of
    from mmad_fast.gpu.architectures import ARCHITECTURES
    from mmad_fast.gpu.triton_kernels import TRITON_MODULES

    rows: list[dict[str, Any]] = []
    for module in TRITON_MODULES:
        for kernel in kernels_of(module):
            configs = {str(sm): [c.label for c in kernel.configs_for(sm)] for sm in ARCHITECTURES}
            rows.append({"kernel": kernel.name, "module": module, "configs": configs})
    if as_json:
        print_json({"kernels": rows})
        return
    from rich.table import Table

    table = Table("kernel", "compute capability", "runs with", "others")
    for row in rows:
        by_configs: dict[tuple[str, ...], list[str]] = {}
        for sm, labels in row["configs"].items():
            by_configs.setdefault(tuple(labels), []).append(sm)
        for (first, *others), sms in by_configs.items():
            table.add_row(row["kernel"], ", ".join(sms), first, str(len(others)))
    print_table(table)
