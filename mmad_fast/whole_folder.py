"""Files and folders that are written whole or not at all; of a folder, a manifest has every sha256.

The detector artifact is one kind, a folder of compiled GPU kernels another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.manifest import MAX_MANIFEST_BYTES, TOP, Rule, UnfitError, integers, read_json
from mmad_fast.scratch_folder import (
    NotPutBackError,
    scratch_folder,
    set_aside,
    sweep,
)

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
"""Beside the manifest, which it signs and which therefore cannot list it."""
DIGEST_KEY = "manifest_sha256"
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".zst", ".7z", ".rar")


@dataclass(frozen=True)
class FolderKind:
    """What a folder holds, and what its errors say.

    Attributes:
        name: As in "the artifact cannot be written".
        contents: As in "this is not a detector artifact".
        schema: Version of the manifest.
        mark: A key of the manifest that no other kind has.
        command: What writes such a folder.
        again: What to do where one is damaged, e.g. "copy the artifact again or refit".
        renew: What to do where its schema is older, e.g. "fit the detector again".
        rule: What the manifest of a schema holds.
        oldest_schema: The oldest that is still read; None: `schema` only.
    """

    name: str
    contents: str
    schema: int
    mark: str
    command: str
    again: str
    renew: str
    rule: Callable[[int], Rule]
    oldest_schema: int | None = None

    @property
    def schemas_read(self) -> str:
        """For messages, as in "3 to 4"."""
        if self.oldest_schema in (None, self.schema):
            return str(self.schema)
        return f"{self.oldest_schema} to {self.schema}"


@contextmanager
def new_folder_beside(path: Path | str, kind: FolderKind) -> Iterator[tuple[Path, Path]]:
    """(new empty folder beside the target, the target), the target checked to be replaceable.

    At the end the folder is removed if it is still there, and so are parents made for it that
    stayed empty. What writers of the same target that died have left is removed at the beginning.

    Raises:
        InvalidInputError: `path` is no path.
        ArtifactError: `path` is a file, or a folder that holds something else than this kind, or
            cannot be written; or the old folder could neither be replaced nor put back.
    """
    missing: list[Path] = []
    try:
        target = as_path(path, kind).resolve()
        sweep(target.parent, target.name)
        sweep(target, SIGNATURE_FILE)
        _check_replaceable(target, kind)
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent, target.name) as scratch:
            yield scratch, target
    except NotPutBackError as error:
        raise ArtifactError(
            f"{target}: replacing the {kind.name} failed, and so did putting the old one back "
            f"({error.strerror or error}); the old one is whole at {error.old}: move it back"
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"{path}: the {kind.name} cannot be written ({error.strerror or error}); "
            "choose a folder with room where you may write"
        ) from error
    finally:
        for folder in missing:  # the innermost first
            with suppress(OSError):  # it holds the new folder, or was never made
                folder.rmdir()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write in a folder beside `path`; it takes its place at the end, or is removed after
    an error.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.parent, path.name) as scratch:
        yield scratch / path.name
        os.replace(scratch / path.name, path)


def as_path(path: Path | str, kind: FolderKind) -> Path:
    """The path of a folder of this kind.

    Raises:
        InvalidInputError: it is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInputError(f"the {kind.name}'s path is {path!r}; it must be a folder's path")
    return Path(path)


def _check_replaceable(target: Path, kind: FolderKind) -> None:
    """Raises if there is something at the target that is not of this kind, and that alone.

    Raises:
        ArtifactError: it is a file, or a folder that holds other files.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtifactError(f"{target}: is a file; name a new folder for the {kind.name}")
    own = _own_paths(target, kind)
    others = sorted(
        path for file in target.rglob("*") if (path := file.relative_to(target)) not in own
    )
    if others:
        more = ", ..." if len(others) > 3 else ""
        raise ArtifactError(
            f"{target}: the folder holds other files than those of {kind.contents} "
            f"({', '.join(map(str, others[:3]))}{more}); name a new folder, or empty this one"
        )


def _own_paths(folder: Path, kind: FolderKind) -> set[Path]:
    """What belongs to the manifest in a folder, with the folders in it; empty if there is none."""
    try:
        content = read_json(_manifest_bytes(folder / MANIFEST_FILE))
    except (OSError, ValueError):
        return set()
    keys = {"schema", DIGEST_KEY, "files", kind.mark}
    if not isinstance(content, dict) or not keys <= content.keys():
        return set()
    listed = content["files"] if isinstance(content["files"], dict) else {}
    files = [Path(name) for name in (SIGNATURE_FILE, *listed)]
    return {Path(MANIFEST_FILE), *files, *(parent for file in files for parent in file.parents)}


def is_archive(path: Path) -> bool:
    """Whether it is a file that is named as one that must be unpacked first."""
    return path.suffix.lower() in ARCHIVE_SUFFIXES and path.is_file()


def make_readable(folder: Path) -> None:
    """Permissions as for any new file; temporary folders and safetensors are the owner's alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def write_manifest(content: dict[str, Any], folder: Path) -> None:
    """Writes the manifest with its own sha256."""
    sealed = {**content, DIGEST_KEY: _digest(content)}
    text = json.dumps(sealed, indent=2, allow_nan=False) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def check_is_there(folder: Path, kind: FolderKind) -> None:
    """Raises if there is no folder with a manifest.

    Raises:
        ArtifactError: the folder or the manifest is missing, or the manifest is a symbolic link.
    """
    if is_archive(folder):
        raise ArtifactError(f"{folder}: is an archive; unpack it first, then name its folder")
    if not folder.is_dir():
        old = set_aside(folder.resolve())
        raise ArtifactError(
            f"{folder}: no such folder; make {kind.contents} with `{kind.command}`, or check the "
            "path"
            if old is None
            else f"{folder}: no such folder, since replacing it was interrupted; the old "
            f"{kind.name} is whole: move it back: {shlex.join(['mv', str(old), str(folder)])}"
        )
    refuse_link(folder / MANIFEST_FILE)
    if not (folder / MANIFEST_FILE).is_file():
        raise ArtifactError(
            f"{folder}: has no {MANIFEST_FILE}, so it is not {kind.contents}; "
            f"name the folder that `{kind.command} --output` wrote"
        )


def parse_manifest(text: bytes, folder: Path, kind: FolderKind) -> dict[str, Any]:
    """The manifest's content, its schema and its own sha256 checked.

    Args:
        text: The manifest file's content.
        folder: Where it lies, for messages.
        kind: What the folder should hold.

    Raises:
        ArtifactError: it is not readable, has been changed, is of another kind, has another schema,
            or holds what it may not.
    """
    file = folder / MANIFEST_FILE
    try:
        content = read_json(text)
        if not isinstance(content, dict) or "schema" not in content:
            raise UnfitError("it is no object with a schema")
        schema = content["schema"]
        integers(0, 9999).check(schema, "schema")
    except ValueError as error:
        raise ArtifactError(
            f"{file}: is not a readable manifest ({error}); {kind.again}"
        ) from error
    if kind.mark not in content:  # its schema is that of another kind and says nothing of this one
        raise ArtifactError(
            f"{folder}: has the manifest of something else than {kind.contents}; name the folder "
            f"that `{kind.command} --output` wrote"
        )
    if schema > kind.schema:
        raise ArtifactError(
            f"{file}: has schema {schema}, this version reads {kind.schemas_read}; upgrade with:"
            " pip install --upgrade mmad-fast"
        )
    if schema < (kind.schema if kind.oldest_schema is None else kind.oldest_schema):
        raise ArtifactError(
            f"{file}: has schema {schema}, this version reads {kind.schemas_read}; {kind.renew}: "
            f"{kind.command}"
        )
    digest = content.pop(DIGEST_KEY, None)
    if digest != _digest(content):
        raise ArtifactError(
            f"{file}: has been changed since it was written (its own sha256 differs); {kind.again}"
        )
    try:
        kind.rule(schema).check(content, TOP)
    except UnfitError as error:
        raise ArtifactError(f"{file}: {error}; {kind.again}") from error
    return content


def _manifest_bytes(file: Path) -> bytes:
    """The manifest's bytes; of one that is too long as many as say so."""
    with file.open("rb") as stream:
        return stream.read(MAX_MANIFEST_BYTES + 1)


def refuse_link(file: Path) -> None:
    """Raises ArtifactError for a symbolic link: it may lead anywhere, and elsewhere tomorrow."""
    if file.is_symlink():
        raise ArtifactError(
            f"{file}: is a symbolic link, which no file of such a folder may be (the folder itself "
            f"may); copy the folder with what its links lead to: cp -rL {file.parent} COPY"
        )


def check_nothing_else(folder: Path, listed: Collection[str], kind: FolderKind) -> None:
    """Raises if a folder without folders holds what its manifest does not list.

    What systems leave there by themselves begins with a dot (.DS_Store, .nfs000...). That is left
    alone, since no listed file may be called so, and never opened.

    Raises:
        ArtifactError: it does; names the files.
    """
    known = {MANIFEST_FILE, SIGNATURE_FILE, *listed}
    others = sorted(
        name for name in os.listdir(folder) if name not in known and not name.startswith(".")
    )
    if others:
        more = ", ..." if len(others) > 3 else ""
        raise ArtifactError(
            f"{folder}: holds {', '.join(others[:3])}{more}, which its manifest does not list; "
            f"move it out of the {kind.name}, or {kind.again}"
        )


@contextmanager
def reading(folder: Path, kind: FolderKind) -> Iterator[None]:
    """Turns what the system refuses meanwhile into an ArtifactError."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or folder}: cannot be read ({error.strerror or error}); check that "
            f"you may read the files of the {kind.name}"
        ) from error


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def fingerprint(file: Path) -> dict[str, Any]:
    """The sha256 and the size in bytes of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "bytes": file.stat().st_size}
