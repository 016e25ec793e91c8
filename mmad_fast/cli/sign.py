"""`mmad-fast sign`: say that an artifact is yours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmad_fast.cli.options import Json
from mmad_fast.cli.output import print_json


def sign(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder from `mmad-fast fit`.")],
    key: Annotated[Path, typer.Option("--key", help="PEM file with an ed25519 private key.")],
    as_json: Json = False,
) -> None:
    """Sign an artifact; `--trust` then loads no other one. An export changes it: sign it last.

    Example: mmad-fast sign runs/bagel --key key.pem
    """
    from mmad_fast.artifact import sign_artifact

    file = sign_artifact(artifact, key)
    if as_json:
        print_json({"artifact": str(artifact), "signature": str(file)})
    else:
        typer.echo(f"wrote {file}")
