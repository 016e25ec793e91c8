"""Folders to write in until what is written is whole, and what becomes of those whose process died.

    .NAME.0.partial/     beside the target NAME, or in the folder of temporary files
        lock             held (flock) by the process that writes; has the name of its machine
        new/             what is written
        old/             the target while it is replaced: it has no place of its own then

The number is that of the first folder that is free. A process that writes to the same target finds
those of dead processes, since nobody holds their locks.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: nobody can tell there who is dead, so nothing is swept
    fcntl = None

LOCK, NEW, OLD = "lock", "new", "old"
NUM_PLACES = 16
"""Folders of one name that are looked at; one process more takes a name of its own."""
MAX_NAME_BYTES = 120
"""Of a target's name that stand in its scratch folder's: some file systems take 143 for the
whole."""
FOREIGN_AGE_S = 7 * 86400.0
"""After this time the folder of another machine is taken for a dead one's, if nobody holds its
lock: locks of a network share may be known to one machine only."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class NotPutBackError(OSError):
    """The target was set aside, could not be replaced, and could not be moved back."""

    def __init__(self, error: OSError, old: Path) -> None:
        super().__init__(error.errno, error.strerror)
        self.old = old


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new empty folder, removed at the end; those that dead processes left under its name are
    removed first.

    Args:
        parent: Where; it exists.
        name: The target's, or what the folder is for.

    Raises:
        OSError: it cannot be made.
        NotPutBackError: at the end, see `replace_folder`.
    """
    sweep(parent, name)
    folder, lock = _take(parent, name)
    try:
        yield folder / NEW
    finally:
        try:
            _settle(folder, parent / name)
        finally:
            os.close(lock)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A scratch folder in the system's folder of temporary files ($TMPDIR).

    Args:
        purpose: E.g. "fit".

    Raises:
        OSError: it cannot be made.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""
    with scratch_folder(Path(tempfile.gettempdir()), f"mmad-fast-{purpose}-{user}") as folder:
        yield folder


def replace_folder(scratch: Path, target: Path) -> None:
    """Moves a scratch folder to its target; what stood there is removed with the scratch folder.

    Linux exchanges the two at once on its own file systems. Elsewhere the old folder is set aside
    first; where the process dies between the two steps, `sweep` moves it back.

    Raises:
        OSError: it cannot be moved; the target is as it was, or is moved back by the end of
            `scratch_folder`.
    """
    if not target.exists():
        os.rename(scratch, target)
    elif not _exchange(scratch, target):
        old = scratch.with_name(OLD)
        os.rename(target, old)
        os.rename(scratch, target)
        os.rename(old, scratch)  # nothing any longer that could be moved back


def sweep(parent: Path, name: str) -> None:
    """Removes the scratch folders of this name that dead processes left. A target that one of them
    had set aside is moved back, if nothing stands in its place."""
    for folder in _places(parent, name):
        try:
            found = folder.lstat()
        except OSError:  # there is none
            continue
        if not stat.S_ISDIR(found.st_mode) or (fcntl and found.st_uid != os.geteuid()):
            continue
        lock = _lock_of_dead(folder, found.st_mtime)
        if lock is not None:
            with suppress(OSError):
                _settle(folder, parent / name)
            os.close(lock)


def set_aside(target: Path) -> Path | None:
    """Where the target is while it is replaced, or where it was left; None where it is nowhere."""
    places = (folder / OLD for folder in _places(target.parent, target.name))
    return next((old for old in places if old.exists()), None)


def _places(parent: Path, name: str) -> Iterator[Path]:
    return (parent / f"{_hidden(name)}.{number}.partial" for number in range(NUM_PLACES))


def _hidden(name: str) -> str:
    """The beginning of a scratch folder's name, with room for its end: a target's name may be as
    long as the file system takes."""
    encoded = os.fsencode(name)
    if len(encoded) <= MAX_NAME_BYTES:
        return f".{name}"
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    kept = encoded[: MAX_NAME_BYTES - len(digest) - 1].decode("utf-8", "ignore")
    return f".{kept}-{digest}"


def _take(parent: Path, name: str) -> tuple[Path, int]:
    """(a new scratch folder, its lock)."""
    for folder in _places(parent, name):
        with suppress(FileExistsError):
            folder.mkdir(0o700)
            lock = _fill(folder)
            if lock is not None:
                return folder, lock
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_hidden(name)}.", suffix=".partial", dir=parent))
        lock = _fill(folder)
        if lock is not None:
            return folder, lock


def _fill(folder: Path) -> int | None:
    """The lock of a new folder; None where another process took it for a dead one's."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileNotFoundError:
        return None
    try:
        if _try_to_lock(lock):
            os.write(lock, platform.node().encode())
            (folder / NEW).mkdir(0o700)
            return lock
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    os.close(lock)
    return None


def _try_to_lock(lock: int) -> bool:
    """Nobody else holds it; where nothing can be locked it is taken to be so."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _lock_of_dead(folder: Path, changed: float) -> int | None:
    """The lock of a folder that no living process has; None where one may have it."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        with suppress(OSError):  # it died, or lives and begins again with another folder
            folder.rmdir()
        return None
    try:
        if fcntl is None:
            raise OSError
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
            raise FileNotFoundError  # somebody else has swept it
        is_empty = not any((folder / name).exists() for name in (NEW, OLD))
        is_of_here = os.pread(lock, 1024, 0) == platform.node().encode()
        if is_empty or is_of_here or time.time() - changed > FOREIGN_AGE_S:
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _settle(folder: Path, target: Path) -> None:
    """Removes a scratch folder; a target that is still set aside is moved back before.

    Raises:
        NotPutBackError: that failed; then the scratch folder stays.
    """
    old = folder / OLD
    if old.exists() and not target.exists():
        try:
            os.rename(old, target)
        except OSError as error:
            raise NotPutBackError(error, old) from error
    for path in (old, folder / NEW):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # the lock is the last: without it nobody knows whose the rest is
        if {path.name for path in folder.iterdir()} == {LOCK}:
            (folder / LOCK).unlink()
            folder.rmdir()


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step; False where system or file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
