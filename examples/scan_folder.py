"""A folder that a camera writes into, as a source of scans."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mmad_fast.data import ScanFile
from mmad_fast.data.pairing import PNG, TIFF, require_folder

log = logging.getLogger("scan_folder")
Stamp = tuple[tuple[int, int], ...]
"""(size, time of writing) of each file of a pair that is there."""


class ScanFolder:
    """The scans of a folder as they are completed, the oldest first.

    A scan is name.png beside name.tiff, or the same in rgb/ and xyz/. It is handed over when
    neither file has changed for `settle_s`: cameras and network drives show a file long before its
    last byte. (A camera that writes under another suffix and renames at the end needs no waiting:
    0.) A file that stays empty or without partner for `patience_s` is handed over as well: reading
    it fails, and so it is counted. A file written again under the same name is a new scan.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        once: bool = False,
        settle_s: float = 0.5,
        patience_s: float = 10.0,
        poll_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`once`: end when every file that is there has been handed over.

        Raises:
            DataError: no such folder.
        """
        self.folder = require_folder(Path(folder))
        self.once, self.poll_s = once, poll_s
        self.settle_s, self.patience_s = settle_s, max(settle_s, patience_s)
        self._clock = clock
        self._done: dict[str, Stamp] = {}
        self._pending: dict[str, tuple[Stamp, float]] = {}  # the stamp, and since when it is that

    def __iter__(self) -> Iterator[ScanFile]:
        while True:
            yield from self.poll()
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
            if stamp == self._done.get(name):
                continue
            before, since = self._pending.get(name, (None, now))
            since = since if stamp == before else now
            is_whole = len(stamp) == 2 and all(size > 0 for size, _ in stamp)
            if now - since >= (self.settle_s if is_whole else self.patience_s):
                ready.append((max(written for _, written in stamp), name, scan))
                self._done[name] = stamp
            else:
                pending[name] = (stamp, since)
        self._pending = pending
        self._done = {name: stamp for name, stamp in self._done.items() if name in scans}
        return [scan for _, _, scan in sorted(ready, key=lambda entry: entry[:2])]

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


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:  # not written yet, or taken away since it was listed
        return None
    return stat.st_size, stat.st_mtime_ns
