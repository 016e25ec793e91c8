"""The `mmad-fast` command: one file per verb; heavy imports happen inside the commands."""

from __future__ import annotations

import sys

import typer

from mmad_fast.cli import (
    bench,
    doctor,
    evaluate,
    export,
    fit,
    infer,
    kernels,
    sign,
    synth,
    train_shared,
    weights,
)
from mmad_fast.cli.interrupts import Interrupted, interruptible
from mmad_fast.cli.method_options import add_method_command
from mmad_fast.cli.output import prepare_streams, report_error
from mmad_fast.errors import MmadFastError

app = typer.Typer(
    help="Fast, small RGB + 3D industrial anomaly detectors.\n\n"
    "Exit codes: 0 success; 1 the command failed, or a scan could not be scored; 2 wrong usage; "
    "130 interrupted by Ctrl-C (SIGINT); 143 ended by SIGTERM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from mmad_fast import __version__

        typer.echo(f"mmad-fast {__version__}")
        raise typer.Exit


add_method_command(app, "bench", bench.bench)
add_method_command(app, "fit", fit.fit)
app.command("infer")(infer.infer)
app.command("eval")(evaluate.evaluate)
app.command("export")(export.export)
add_method_command(app, "train-shared", train_shared.train_shared)
app.command("synth")(synth.synth)
app.command("doctor")(doctor.doctor)
app.command("sign")(sign.sign)
app.command("weights")(weights.weights)
app.add_typer(kernels.app, name="kernels")


def main() -> None:
    """Runs the command line.

    Exit codes: 0 success, 1 an error, 2 wrong usage, 130 after SIGINT, 143 after SIGTERM.
    """
    prepare_streams()
    as_json = "--json" in sys.argv
    try:
        with interruptible(ends_process=True):
            app()
    except Interrupted as stop:
        report_error(stop, as_json=as_json)
        sys.exit(stop.exit_code)
    except (MmadFastError, OSError) as error:
        report_error(error, as_json=as_json)
        sys.exit(1)
