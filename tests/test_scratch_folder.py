"""Scratch folders: whose they are, and which of them are removed."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from mmad_fast import scratch_folder as module
from mmad_fast.scratch_folder import LOCK, NEW, OLD, replace_folder, scratch_folder, sweep
from mmad_fast.whole_folder import whole_file

HOLDER = """
import sys
from pathlib import Path
from mmad_fast.scratch_folder import scratch_folder
with scratch_folder(Path(sys.argv[1]), "target") as folder:
    (folder / "work").write_text("mine")
    print(folder, flush=True)
    sys.stdin.readline()
"""


def dead(parent: Path, number: int = 0, *names: str, host: str | None = None) -> Path:
    """What a process that was killed leaves."""
    with scratch_folder(parent, "dead") as scratch:
        (scratch / "work").write_text("half")
        content = (scratch.parent / LOCK).read_text() if host is None else host
    folder = parent / f".target.{number}.partial"
    folder.mkdir()
    (folder / LOCK).write_text(content)
    for name in names:
        (folder / name).mkdir()
        (folder / name / "work").write_text(name)
    return folder


def test_a_scratch_folder_is_empty_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "target") as scratch:
        assert list(scratch.iterdir()) == []
        assert scratch.stat().st_mode & 0o077 == 0
        assert scratch.parent.name == ".target.0.partial"
        (scratch / "folder").mkdir()
        with scratch_folder(tmp_path, "target") as other:
            assert other.parent.name == ".target.1.partial"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), scratch_folder(tmp_path, "target"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_keeps_its_folder_and_a_dead_one_does_not(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    held = Path(holder.stdout.readline().strip())
    sweep(tmp_path, "target")
    assert (held / "work").read_text() == "mine"
    holder.kill()
    holder.communicate()
    assert held.exists()
    sweep(tmp_path, "target")
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_removed_whatever_its_number(tmp_path: Path) -> None:
    for number in (0, 3, module.NUM_PLACES - 1):
        dead(tmp_path, number, NEW)
    (tmp_path / ".target.1.partial").mkdir()  # killed before it had a lock
    (tmp_path / "other").mkdir()
    (tmp_path / ".target.backup").mkdir()
    with scratch_folder(tmp_path, "target"):
        names = {path.name for path in tmp_path.iterdir()}
    assert names == {"other", ".target.backup", ".target.0.partial"}


def test_what_another_machine_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    folder = dead(tmp_path, 0, NEW, host="another")
    sweep(tmp_path, "target")
    assert folder.exists()
    week_ago = folder.stat().st_mtime - module.FOREIGN_AGE_S - 1
    os.utime(folder, (week_ago, week_ago))
    sweep(tmp_path, "target")
    assert not folder.exists()


def test_nothing_is_removed_through_a_link_or_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, here = tmp_path / "away", tmp_path / "here"
    for folder in (away, here):
        folder.mkdir()
    folder = dead(away, 0, NEW)
    (here / ".target.0.partial").symlink_to(folder)
    (folder / "more").write_text("mine")
    sweep(here, "target")
    assert (folder / NEW / "work").exists()
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    sweep(away, "target")
    assert (folder / NEW / "work").exists()


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither fcntl nor users with numbers."""
    folder = dead(tmp_path, 0, NEW)
    monkeypatch.setattr("mmad_fast.scratch_folder.fcntl", None)
    monkeypatch.delattr(os, "geteuid")
    with scratch_folder(tmp_path, "target") as scratch:
        assert scratch.parent.name == ".target.1.partial"
    assert (folder / NEW / "work").exists()


def test_files_that_are_not_ours_keep_the_folder(tmp_path: Path) -> None:
    folder = dead(tmp_path, 0, NEW)
    (folder / "notes.txt").write_text("mine")
    sweep(tmp_path, "target")
    assert {path.name for path in folder.iterdir()} == {LOCK, "notes.txt"}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_target_that_was_set_aside_is_moved_back_where_there_is_none(
    tmp_path: Path, is_there: bool
) -> None:
    dead(tmp_path, 2, NEW, OLD)
    target = tmp_path / "target"
    if is_there:
        target.mkdir()
        (target / "work").write_text("there")
    sweep(tmp_path, "target")
    assert (target / "work").read_text() == ("there" if is_there else OLD)
    assert list(tmp_path.iterdir()) == [target]


def test_the_next_of_many_processes_has_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NUM_PLACES", 1)
    with scratch_folder(tmp_path, "target"), scratch_folder(tmp_path, "target") as other:
        assert other.parent.name != ".target.0.partial"
        (other / "work").write_text("mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("can", [True, False])
def test_a_folder_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    if can and not sys.platform.startswith("linux"):
        pytest.skip("folders are exchanged on Linux only")
    if not can:
        monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    else:
        monkeypatch.setattr(os, "rename", lambda *paths: pytest.fail("two steps"))
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("")
    with scratch_folder(tmp_path, "target") as scratch:
        (scratch / "new").write_text("")
        replace_folder(scratch, target)
        assert [path.name for path in scratch.iterdir()] == ["old"]
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def write_often(path: Path, text: str, times: int) -> int:
    for _ in range(times):
        with whole_file(path) as partial:
            partial.write_text(text)
    return times


def test_many_writers_of_one_target_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    path, times = tmp_path / "target", 25
    with ThreadPoolExecutor(3) as threads, ProcessPoolExecutor(3, get_context("spawn")) as pool:
        writers = [
            (pool if index % 2 else threads).submit(write_often, path, str(index) * 1000, times)
            for index in range(6)
        ]
        assert [writer.result() for writer in writers] == [times] * 6
    assert len(set(path.read_text())) == 1
    assert len(path.read_text()) == 1000
    assert list(tmp_path.iterdir()) == [path]
