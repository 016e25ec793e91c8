"""The files of a folder that a manifest describes, whatever stands at its path by now.

A writer replaces such a folder as a whole, so a path may lead to another one at any moment. A file
is therefore opened once: what is hashed is the open file, and what is parsed is what was hashed.
"""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mmad_fast.errors import ArtifactError
from mmad_fast.manifest import MAX_MANIFEST_BYTES
from mmad_fast.scratch_folder import set_aside, sweep
from mmad_fast.whole_folder import (
    MANIFEST_FILE,
    FolderKind,
    check_is_there,
    parse_manifest,
    reading,
    refuse_link,
)

Read = TypeVar("Read")
Locate = Callable[[Path], Path]
"""From the path of a file to one where its verified content can be read."""
ATTEMPTS = 100
"""How often a folder is read again that is replaced at the wrong moment."""
PAUSE_S = 0.01
"""Between two attempts: on file systems that cannot exchange two folders, there is none at the
path for an instant."""
_DESCRIPTORS = Path("/proc/self/fd")
_BLOCK_BYTES = 1 << 20


class ReplacedError(ArtifactError):
    """Another folder has taken the place of the one that was read."""


class FolderFiles:
    """The files of one folder. Those that are held stay readable whatever becomes of the folder;
    others are opened and verified when they are needed.

    Attributes:
        folder: Where it was read.
        kind: What it holds.
        digest: The sha256 of the manifest file: the folder's identity.
    """

    def __init__(self, folder: Path, kind: FolderKind) -> None:
        """Opens the folder's manifest.

        Raises:
            ArtifactError: the folder or its manifest is missing.
            OSError: the manifest cannot be read.
        """
        self.folder, self.kind = folder, kind
        self._place = folder.absolute()  # also where the process goes to another folder
        self._held: dict[str, int] = {}
        weakref.finalize(self, _close, self._held)
        self._wanted: Mapping[str, Mapping[str, Any]] = {}
        self._kinds: Mapping[str, FolderKind] = {}
        check_is_there(folder, kind)
        manifest = _open(folder / MANIFEST_FILE)
        self._held[MANIFEST_FILE] = manifest
        self._text = os.read(manifest, MAX_MANIFEST_BYTES + 1)
        self.digest = hashlib.sha256(self._text).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """What the manifest says.

        Raises:
            ArtifactError: see whole_folder.parse_manifest.
        """
        return parse_manifest(self._text, self.folder, self.kind)

    def describe(
        self,
        wanted: Mapping[str, Mapping[str, Any]],
        kinds: Mapping[str, FolderKind] | None = None,
    ) -> None:
        """Says what the files must be.

        Args:
            wanted: Per file its fingerprint in the manifest, see whole_folder.fingerprint.
            kinds: Of files whose errors advise something of their own.
        """
        self._wanted, self._kinds = wanted, kinds or {}

    def hold(self, *names: str, hashed: bool = True) -> None:
        """Opens and verifies files; they stay open until `release`, or until this object is gone.

        Args:
            names: The files.
            hashed: Check the sha256 too (about 1 GB/s), not the size only.

        Raises:
            ArtifactError: a file is missing or has changed.
            ReplacedError: they are not all of the folder whose manifest was read.
        """
        for name in names:
            self._held[name] = self._opened(name)
        # Hashing may be left out, and damage must not be taken for a replacement: so first of all
        # they are of one folder, which still stands at the path.
        if not self.is_current():
            raise self._replaced()
        for name in names:
            self._verify(name, self._held[name], hashed=hashed)

    def is_current(self) -> bool:
        """The manifest that was read is the one at the path; before it is released."""
        return _leads_to(self._place / MANIFEST_FILE, self._held[MANIFEST_FILE])

    def release(self) -> None:
        """Closes the files that are held."""
        _close(self._held)

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """A path where the verified file can be read, by a library too that opens files itself.

        Raises:
            ReplacedError: the file is not held, and another folder stands at the path by now.
            ArtifactError: it is not held, and is missing or has changed.
        """
        held = self._held.get(name)
        descriptor = self._verified_anew(name) if held is None else held
        try:
            path = _DESCRIPTORS / str(descriptor)
            has_path = path.exists()  # on Linux
            yield path if has_path else self._place / name
            if not has_path and not _leads_to(self._place / name, descriptor):
                raise self._replaced()
        finally:
            if held is None:
                os.close(descriptor)

    @contextmanager
    def located(self) -> Iterator[Locate]:
        """Gives paths of verified files as `opened` does, until the end."""
        with ExitStack() as stack:
            yield lambda file: stack.enter_context(self.opened(file.name))

    def read_bytes(self, name: str) -> bytes:
        """The verified content of a file.

        Raises:
            ArtifactError: as `opened`.
        """
        with self.opened(name) as path:
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self._wanted[name]["sha256"]:
            raise self._changed(name, f"sha256 {hashlib.sha256(content).hexdigest()[:12]}...")
        return content

    def _kind_of(self, name: str) -> FolderKind:
        return self._kinds.get(name, self.kind)

    def _opened(self, name: str) -> int:
        file = self._place / name
        refuse_link(file)
        if name not in self._wanted or not file.is_file():
            raise ArtifactError(
                f"{self.folder}: the file {name} is missing; {self._kind_of(name).again}"
            )
        return _open(file)

    def _verified_anew(self, name: str) -> int:
        """A file that is not held: an artifact that came meanwhile may have the same one."""
        with reading(self.folder, self.kind):
            for _ in range(ATTEMPTS):
                try:
                    now = FolderFiles(self._place, self.kind)
                except (ArtifactError, FileNotFoundError):
                    break
                now.describe(self._wanted, self._kinds)
                try:
                    now.hold(name)
                    return now._held.pop(name)
                except (ArtifactError, OSError):
                    if not now.is_current():
                        continue
                    if now.digest == self.digest:
                        raise
                    break
        raise self._replaced()

    def _verify(self, name: str, descriptor: int, *, hashed: bool) -> None:
        wanted = self._wanted[name]
        size = os.fstat(descriptor).st_size
        if size != wanted["bytes"]:
            raise ArtifactError(
                f"{self.folder}: {name} has {size} bytes, the manifest says {wanted['bytes']}; "
                f"{self._kind_of(name).again}"
            )
        if hashed and (found := _sha256(descriptor)) != wanted["sha256"]:
            raise self._changed(name, f"sha256 {found[:12]}...")

    def _changed(self, name: str, found: str) -> ArtifactError:
        return ArtifactError(
            f"{self.folder}: {name} has been changed ({found}, the manifest says "
            f"{self._wanted[name]['sha256'][:12]}...); {self._kind_of(name).again}"
        )

    def _replaced(self) -> ReplacedError:
        return ReplacedError(
            f"{self.folder}: the {self.kind.name} was replaced since it was loaded; load it again"
        )


def read_whole(folder: Path, kind: FolderKind, read: Callable[[FolderFiles], Read]) -> Read:
    """What `read` makes of the files of one folder; where another takes its place meanwhile, of
    that one.

    A folder that a writer which died has set aside is moved back first.

    Raises:
        ArtifactError: what `read` raises; the folder or its manifest is missing or cannot be read.
    """
    for attempt in range(ATTEMPTS):
        files = None
        try:
            with reading(folder, kind):
                files = FolderFiles(folder, kind)
                return read(files)
        except ArtifactError:
            is_last = attempt + 1 == ATTEMPTS
            if is_last or not (_is_back(folder) if files is None else not files.is_current()):
                raise
        time.sleep(PAUSE_S * (files is None))
    raise AssertionError("the last attempt returns or raises")


def manifest_digest(folder: Path) -> str:
    """The sha256 of a folder's manifest file.

    Raises:
        OSError: it cannot be read.
    """
    return hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()


def _is_back(folder: Path) -> bool:
    """A folder that could not be opened is there by now, or is to be expected: it is set aside."""
    target = folder.resolve()
    if not target.exists():
        sweep(target.parent, target.name)
    manifest = target / MANIFEST_FILE
    can_be_read = manifest.is_file() and not manifest.is_symlink() and os.access(manifest, os.R_OK)
    return can_be_read or (not target.exists() and set_aside(target) is not None)


def _open(file: Path) -> int:
    """The descriptor; of a link, too, that has come since it was looked for, there is none."""
    flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    return os.open(file, os.O_RDONLY | flags)


def _close(held: dict[str, int]) -> None:
    while held:
        os.close(held.popitem()[1])


def _blocks(descriptor: int) -> Iterator[bytes]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    while block := os.read(descriptor, _BLOCK_BYTES):
        yield block


def _sha256(descriptor: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(descriptor):
        digest.update(block)
    return digest.hexdigest()


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
