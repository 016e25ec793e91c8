"""Runs a writer in a child process that kills itself before its n-th change of the file system.

Reads lines of JSON, [writer, folder, n], n = 0 for no kill; answers each with a line: how many
changes the child came to, or -1 where it failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from robustness.replacing import writer_arguments

from mmad_fast import scratch_folder
from mmad_fast.artifact import write_artifact
from mmad_fast.data.new_folder import new_folder
from mmad_fast.export import export_detector
from mmad_fast.export.engine_cache import EngineCache
from mmad_fast.report.pictures import save_map_tiff
from mmad_fast.whole_folder import whole_file

CHANGES = {
    "ctypes.dlsym",  # right before two folders are exchanged
    "fcntl.flock",
    "os.chmod",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "shutil.copyfile",
    "shutil.rmtree",
    "tempfile.mkdtemp",
}
"""Audit events of Python that come before a change."""
SOURCE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def artifact(folder: Path) -> None:
    arguments = writer_arguments(SOURCE)
    arguments["golden"] = replace(arguments["golden"], expected_score=7.0)
    write_artifact(folder / "target", **arguments)


def artifact_in_two_steps(folder: Path) -> None:
    scratch_folder._exchange = lambda one, other: False
    artifact(folder)


def first_artifact(folder: Path) -> None:
    artifact(folder)


def export(folder: Path) -> None:
    export_detector(folder / "target", to="onnx", measure=False)


def file(folder: Path) -> None:
    with whole_file(folder / "target") as partial:
        partial.write_bytes(b"new" * 1000)


def picture(folder: Path) -> None:
    save_map_tiff(folder / "target.tiff", np.eye(64, dtype=np.float32))


def data(folder: Path) -> None:
    with new_folder(folder / "target") as target:
        for name in ("a", "b"):
            (target / name).write_bytes(b"new")


def engine(folder: Path) -> None:
    file = folder / "built"
    file.write_bytes(b"engine")
    EngineCache(folder).store("target", file, build_s=1.0, layers=[])
    file.unlink()


def temporary(folder: Path) -> None:
    tempfile.tempdir = str(folder)
    with scratch_folder.temporary_folder("fit") as scratch:
        (scratch / "features").write_bytes(b"new")


WRITERS: dict[str, Callable[[Path], None]] = {
    writer.__name__: writer
    for writer in (
        artifact,
        artifact_in_two_steps,
        export,
        first_artifact,
        file,
        picture,
        data,
        engine,
        temporary,
    )
}
"""Each writes "target" or "target.tiff" in a folder, the last one nothing that stays. The first
three find an artifact there."""


def run(name: str, folder: Path, kill_at: int, report: int) -> None:
    """In the child: the writer, killed before that change."""
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        is_opened = event == "open" and str(arguments[0]).startswith(str(folder))
        if not is_opened and event not in CHANGES:
            return
        done += 1
        os.write(report, b".")
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    WRITERS[name](folder)


def main() -> None:
    """One child per line."""
    for line in sys.stdin:
        name, folder, kill_at = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                run(name, Path(folder), kill_at, writing)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            changes = len(pipe.read())
        _, status = os.waitpid(child, 0)
        failed = os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
        print(-1 if failed else changes, flush=True)


if __name__ == "__main__":
    main()
