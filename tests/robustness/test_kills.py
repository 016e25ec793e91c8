"""Processes that are killed while they write: the target is whole, and nothing stays for ever.

MMAD_FAST_KILLS: how many kills, spread evenly over all changes that the writers make to the file
system; `make fuzz` takes 200.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from robustness.killing import WRITERS

from mmad_fast.artifact import read_artifact
from mmad_fast.errors import ArtifactError

NUM_KILLS = int(os.environ.get("MMAD_FAST_KILLS", "42"))
ROOT = Path(__file__).parents[1]
Killer = Callable[[str, Path, int], int]


@pytest.fixture(scope="module")
def kill(tiny_artifact: Path) -> Iterator[Killer]:
    """Runs a writer in a process that kills itself before a change, and counts the changes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "robustness.killing", str(tiny_artifact)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )

    def run(writer: str, folder: Path, at: int) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([writer, str(folder), at]) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield run
    process.kill()
    process.communicate()


def content(folder: Path) -> dict[str, bytes]:
    """What is in a folder, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def state(folder: Path) -> tuple[float, int] | None:
    """What tells the old artifact from the new one; None where there is none."""
    try:
        artifact = read_artifact(folder / "target")
    except ArtifactError as error:
        if "no such folder; make a detector artifact" not in str(error):
            raise
        return None
    return artifact.golden().expected_score, len(artifact.manifest.engines)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_killed_writer_leaves_what_was_or_what_will_be(
    writer: str,
    kill: Killer,
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the kill there are an artifact, or nothing. Afterwards there is that or the new one,
    whole; and the next writer leaves nothing but its target."""
    is_artifact = writer in ("artifact", "artifact_in_two_steps", "export", "first_artifact")

    def prepare(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if is_artifact and writer != "first_artifact":
            shutil.copytree(tiny_artifact, folder / "target")
        return folder

    whole = prepare("whole")
    num_changes = kill(writer, whole, 0)
    assert num_changes > 4
    expected = content(whole)
    states = {state(prepare("old")), state(whole)} if is_artifact else set()
    assert len(states) == 2 * is_artifact
    share = min(num_changes, -(-NUM_KILLS // len(WRITERS)))
    for at in np.linspace(1, num_changes, share).round().astype(int).tolist():
        folder = prepare(f"killed-{at}")
        assert kill(writer, folder, at) == at
        left = content(folder)
        if is_artifact:
            assert state(folder) in states, f"killed before change {at}: {sorted(left)}"
        visible = {name: text for name, text in left.items() if not name.startswith((".", "built"))}
        if not is_artifact:
            assert visible in ({}, expected), f"killed before change {at}"
        if writer == "data":  # is never replaced
            shutil.rmtree(folder / "target", ignore_errors=True)
        assert kill(writer, folder, 0) > 0
        names = {path.name for path in folder.iterdir()}
        assert names <= {"target", "target.tiff"}, f"left by a kill before change {at}"
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{writer}: killed at {share} of {num_changes} changes: nothing lost, nothing left")
