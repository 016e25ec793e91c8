"""Processes that are killed while they write: the target is whole, and nothing stays for ever.

A writer kills itself before one of the changes that it makes to the file system; the kills are
spread evenly over all changes of all writers. Then there is what was or what will be, and the next
writer leaves nothing but its target.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from robustness.attack import ANSWER, LEFTOVER, MIXTURE, WRONG_EXCEPTION, Outcome
from robustness.killing import WRITERS
from tiny_artifacts import write_tiny_cfm

from mmad_fast.artifact import read_artifact
from mmad_fast.errors import ArtifactError

TESTS = Path(__file__).parents[1]
FIND_AN_ARTIFACT = ("artifact", "artifact_in_two_steps", "export")
WRITE_AN_ARTIFACT = (*FIND_AN_ARTIFACT, "first_artifact")
State = tuple[float, int] | None
"""What tells the old artifact from the new one; None where there is none."""
Killer = Callable[[str, Path, int], int]
"""Runs a writer (name, folder, change before which it is killed or 0) and counts its changes."""


def run(count: int, seed: int) -> Iterator[Outcome]:
    """What `count` kills left. The seed moves them to other changes."""
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        artifact = write_tiny_cfm(Path(scratch, "tiny", "artifact"))
        with killer(artifact) as kill:
            for number, writer in enumerate(WRITERS):
                share = count // len(WRITERS) + (number < count % len(WRITERS))
                place = Attempt(writer, kill, artifact, Path(scratch))
                for change in spread(place.num_changes, share, seed):
                    yield place.kill_at(change)


def spread(num_changes: int, count: int, seed: int) -> list[int]:
    """`count` of the changes from 1, evenly, more often than once where there are fewer."""
    shift = seed % max(1, num_changes // max(1, count))
    return [1 + at * num_changes // count + shift for at in range(count)]


@contextmanager
def killer(artifact: Path) -> Iterator[Killer]:
    """What runs a writer in a process that kills itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "robustness.killing", str(artifact)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "bench")]),
        },
    )

    def kill(writer: str, folder: Path, at: int) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([writer, str(folder), at]) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    try:
        yield kill
    finally:
        process.kill()
        process.communicate()


class Attempt:
    """The kills of a writer.

    Attributes:
        num_changes: Of the file system, that the writer makes.
    """

    def __init__(self, writer: str, kill: Killer, artifact: Path, scratch: Path) -> None:
        self.writer, self._kill, self._artifact, self._scratch = writer, kill, artifact, scratch
        self._is_artifact = writer in WRITE_AN_ARTIFACT
        whole = self._prepare("whole")
        before = state(whole) if self._is_artifact else None
        self.num_changes = kill(writer, whole, 0)
        if self.num_changes < 4:
            raise RuntimeError(f"{writer}: made {self.num_changes} changes, which cannot be all")
        self._expected = content(whole)
        self._states = {before, state(whole)} if self._is_artifact else set()
        if self._is_artifact and len(self._states) != 2:
            raise RuntimeError(f"{writer}: old and new cannot be told apart")

    def kill_at(self, change: int) -> Outcome:
        """What a kill before that change leaves."""
        case = f"{self.writer}, change {change} of {self.num_changes}"
        folder = self._prepare("killed")
        try:
            if self._kill(self.writer, folder, change) != change:
                return Outcome(WRONG_EXCEPTION, case, "the writer failed")
            problem = self._problem(folder)
            if problem:
                return Outcome(MIXTURE, case, problem)
            if self.writer == "data":  # is never replaced
                shutil.rmtree(folder / "target", ignore_errors=True)
            if self._kill(self.writer, folder, 0) < 1:
                return Outcome(WRONG_EXCEPTION, case, "the next writer failed")
            left = {path.name for path in folder.iterdir()} - {"target", "target.tiff"}
            return Outcome(LEFTOVER if left else ANSWER, case, ", ".join(sorted(left)))
        finally:
            shutil.rmtree(folder)

    def _problem(self, folder: Path) -> str:
        """What is neither old nor new; "" where all is."""
        left = content(folder)
        if self._is_artifact:
            try:
                found = state(folder)
            except ArtifactError as error:
                return f"{error}, of {sorted(left)}"
            return "" if found in self._states else f"an artifact of neither: {found}"
        hidden = (".", "built")
        visible = {name: text for name, text in left.items() if not name.startswith(hidden)}
        return "" if visible in ({}, self._expected) else f"{sorted(visible)}, not whole"

    def _prepare(self, name: str) -> Path:
        folder = self._scratch / f"{self.writer}-{name}"
        folder.mkdir()
        if self.writer in FIND_AN_ARTIFACT:
            shutil.copytree(self._artifact, folder / "target")
        return folder


def content(folder: Path) -> dict[str, bytes]:
    """What is in a folder, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def state(folder: Path) -> State:
    """Of the artifact in a folder.

    Raises:
        ArtifactError: it is neither whole nor gone.
    """
    try:
        artifact = read_artifact(folder / "target")
    except ArtifactError as error:
        if "no such folder; make a detector artifact" not in str(error):
            raise
        return None
    return artifact.golden().expected_score, len(artifact.manifest.engines)
