"""A folder that a camera writes into, as a source of scans."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from json_lines import JsonLines
from numpy.typing import NDArray

from mmad_fast.data import ScanFile
from mmad_fast.data.image_files import read_xyz_tiff
from mmad_fast.data.pairing import PNG, TIFF, require_folder
from mmad_fast.errors import DataError

log = logging.getLogger("scan_folder")
Stamp = tuple[tuple[int, int], ...]
"""(size, time of writing) of each file of a pair that is there."""
MAX_NOTES = 100_000
"""Lines of a position before those that are outdated go."""


class ScanFolder:
    """The scans of a folder as they are completed, the oldest first.

    A scan is name.png beside name.tiff, or the same in rgb/ and xyz/. It is handed over when
    neither file has changed for `settle_s`: cameras and network drives show a file long before its
    last byte. (A camera that writes under another suffix and renames at the end needs no waiting:
    0.) A file that stays empty or without partner for `patience_s` is handed over as well: reading
    it fails, and so it is counted. So does a pair that changes while it is read. A pair written
    again under the same name is a new scan, once both files are; with one of them only, reading it
    fails after `patience_s`.

    With a `position` a restart goes on where it was: a scan is noted before it is handed over, and
    when it is finished. The one that was in work at a kill is not handed over again, since nobody
    knows whether its part was ejected, and the ejector would take the part that is there now: it
    is in `interrupted`. (`repeat_interrupted` hands it over again.)
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        once: bool = False,
        settle_s: float = 0.5,
        patience_s: float = 10.0,
        poll_s: float = 0.1,
        position: Path | None = None,
        repeat_interrupted: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`once`: end when every file that is there has been handed over.

        Raises:
            DataError: no such folder.
            OSError: the position cannot be written.
        """
        self.folder = require_folder(Path(folder))
        self.once, self.poll_s = once, poll_s
        self.settle_s, self.patience_s = settle_s, max(settle_s, patience_s)
        self._clock = clock
        self._done: dict[str, Stamp] = {}
        self._pending: dict[str, tuple[Stamp, float]] = {}  # the stamp, and since when it is that
        self.interrupted: list[str] = []
        self._position = None if position is None else JsonLines(position, max_bytes=0)
        self._noted: dict[str, Stamp] = {}
        self._num_notes = 0
        if self._position is not None:
            self._go_on(repeat_interrupted)

    def __iter__(self) -> Iterator[ScanFile]:
        while True:
            for scan in self.poll():
                self._note(scan.name, "begun")
                yield scan
            if self.once and not self._pending:
                return
            time.sleep(self.poll_s)

    def poll(self) -> list[ScanFile]:
        """The scans that have become ready since the last call, the oldest first."""
        try:
            scans = self._list()
        except OSError as error:  # a network drive that comes and goes
            log.warning("%s cannot be listed (%s); trying again", self.folder, error)
            return []
        now, pending, ready = self._clock(), {}, []
        for name, (stamp, scan) in scans.items():
            done = self._done.get(name, ())
            if stamp == done:
                continue
            before, since = self._pending.get(name, (None, now))
            since = since if stamp == before else now
            is_half = len(stamp) == len(done) == 2 and (stamp[0] == done[0] or stamp[1] == done[1])
            is_whole = len(stamp) == 2 and all(size > 0 for size, _ in stamp) and not is_half
            if now - since >= (self.settle_s if is_whole else self.patience_s):
                reading = partial(_read_unchanged, scan, None if is_half else stamp)
                whole = replace(scan, read_xyz=reading)
                ready.append((max(written for _, written in stamp), name, whole))
                self._done[name] = stamp
            else:
                pending[name] = (stamp, since)
        self._pending = pending
        self._done = {name: stamp for name, stamp in self._done.items() if name in scans}
        return [scan for _, _, scan in sorted(ready, key=lambda entry: entry[:2])]

    def finish(self, scan: object) -> None:
        """Notes that a scan that was handed over, or the name of an interrupted one, has had all
        that follows its decision."""
        name = scan.name if isinstance(scan, ScanFile) else scan
        if isinstance(name, str):
            self._note(name, "finished")

    def _note(self, name: str, state: str) -> None:
        if self._position is None:
            return
        try:
            self._noted[name] = self._done.get(name, ())
            self._num_notes += 1
            self._position.append({"scan": name, "state": state, "stamp": self._noted[name]})
            if self._num_notes > MAX_NOTES and state == "finished":
                self._shorten()
        except OSError as error:  # kept in memory; a kill now would repeat scans
            log.error("the position cannot be written: %s", error)

    def _go_on(self, repeat_interrupted: bool) -> None:
        states: dict[str, str] = {}
        for note in self._position.read() if self._position else ():
            states[note["scan"]] = note["state"]
            self._done[note["scan"]] = tuple((size, at) for size, at in note["stamp"])
        begun = [name for name, state in states.items() if state == "begun"]
        if repeat_interrupted:
            for name in begun:
                del self._done[name]
        else:
            self.interrupted = begun
        self._noted = dict(self._done)

    def _shorten(self) -> None:
        """Leaves of the position the last note of each scan that is still there."""
        self._noted = {name: at for name, at in self._noted.items() if name in self._done}
        self._num_notes = 0
        if self._position is not None:
            self._position.replace(
                [
                    {"scan": name, "state": "finished", "stamp": stamp}
                    for name, stamp in self._noted.items()
                ]
            )

    def _list(self) -> dict[str, tuple[Stamp, ScanFile]]:
        rgb_folder, xyz_folder = self.folder / "rgb", self.folder / "xyz"
        if not (rgb_folder.is_dir() and xyz_folder.is_dir()):
            rgb_folder = xyz_folder = self.folder
        rgb, xyz = _files(rgb_folder, PNG), _files(xyz_folder, TIFF)
        scans = {}
        for name in rgb.keys() | xyz.keys():
            scan = ScanFile(
                name=name,
                category=self.folder.name,
                split="test",
                defect="",
                rgb_path=rgb.get(name, rgb_folder / f"{name}{PNG[0]}"),
                xyz_path=xyz.get(name, xyz_folder / f"{name}{TIFF[0]}"),
            )
            stamp = tuple(filter(None, (_stamp(scan.rgb_path), _stamp(scan.xyz_path))))
            if stamp:
                scans[name] = (stamp, scan)
        return scans


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """By name without suffix; hidden ones, as many programs write first, left out."""
    return {
        path.stem: path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    }


def _read_unchanged(scan: ScanFile, stamp: Stamp | None, path: Path) -> NDArray[np.floating]:
    """The points, where both files are still those of the stamp; None: only one was written again.

    Colours are read before points, so that they are of the same writing, too."""
    if stamp is None:
        raise DataError(
            f"of {scan.rgb_path} and {scan.xyz_path} only one was written again; the other is of "
            "the scan before"
        )
    xyz = read_xyz_tiff(path)
    now = tuple(filter(None, (_stamp(scan.rgb_path), _stamp(scan.xyz_path))))
    if now != stamp:
        raise DataError(f"{scan.rgb_path} or {scan.xyz_path} changed while they were read")
    return xyz


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:  # not written yet, or taken away since it was listed
        return None
    return stat.st_size, stat.st_mtime_ns
