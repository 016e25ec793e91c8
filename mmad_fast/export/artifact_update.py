"""Artifact -> the same artifact with one more engine, replaced whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmad_fast.artifact import Artifact, read_artifact
from mmad_fast.engine_record import EngineKey, EngineRecord
from mmad_fast.errors import ArtifactError
from mmad_fast.folder_files import ATTEMPTS, manifest_digest
from mmad_fast.scratch_folder import replace_folder
from mmad_fast.whole_folder import fingerprint, make_readable, write_manifest


def add_engine(
    artifact: Artifact,
    record: EngineRecord,
    scratch: Path,
    target: Path,
    *,
    measured: Mapping[EngineKey | None, Mapping[str, Any]] | None = None,
) -> None:
    """Writes the artifact with one more engine, complete on disk at `target`; one of the same key
    is replaced.

    The manifest is read again first, and what is replaced must be what was read: what another
    process has exported meanwhile is kept.

    Args:
        artifact: The artifact to extend, which may stand at `target`.
        record: The engine; its files lie in `scratch`.
        scratch: The folder beside `target` that becomes the artifact, see new_folder_beside. It
            holds the engine's files and nothing else.
        target: Where the artifact will be.
        measured: Speeds that replace those of the same key; None stands for the artifact's own
            graphs.

    Raises:
        ArtifactError: the artifact has been fitted again since it was read, or is gone.
        OSError: a file cannot be written.
    """
    for _ in range(ATTEMPTS):
        replaced = _complete(artifact, record, scratch, target, dict(measured or {}))
        replace_folder(scratch, target)  # the scratch folder is what stood there now
        if replaced is None or manifest_digest(scratch) == replaced:
            return
        replace_folder(scratch, target)
    raise ArtifactError(
        f"{artifact.path}: is replaced again and again by other processes; export it again"
    )


def _complete(
    artifact: Artifact,
    record: EngineRecord,
    scratch: Path,
    target: Path,
    times: Mapping[EngineKey | None, Mapping[str, Any]],
) -> str | None:
    """Makes the scratch folder the artifact with one more engine; returns the identity of the
    artifact that it may replace, None where there is none."""
    for file in scratch.iterdir():
        if file.name not in record.files:  # of another attempt
            file.unlink()
    current = read_artifact(artifact.path, verify=False, renewed=record.key)
    before, own_files = current.manifest, fitted_files(current)
    if own_files != fitted_files(artifact):
        raise ArtifactError(
            f"{artifact.path}: the detector has been fitted again since this export began; export "
            "it again"
        )
    kept = [
        replace(other, measured=dict(times[other.key])) if other.key in times else other
        for other in before.engines
        if other.key != record.key
    ]
    new_files = {name: fingerprint(scratch / name) for name in record.files}
    names = {*own_files, *(name for other in kept for name in other.files)}
    after = replace(
        before,
        files=dict(sorted({**{name: before.files[name] for name in names}, **new_files}.items())),
        engines=(*kept, record),
        measured=dict(times[None]) if None in times else before.measured,
    )
    is_replaced = target.exists() and artifact.path.samefile(target)
    write_manifest(asdict(after), scratch)
    make_readable(scratch)  # the new files alone: the others may belong to somebody else
    for name in sorted(names):
        with current.files.opened(name) as file:
            _link_or_copy(artifact.path / name, file, scratch / name, link=is_replaced)
    return current.files.digest if is_replaced else None


def fitted_files(artifact: Artifact) -> dict[str, Any]:
    """The fingerprints of what `fit` wrote, without the engines: two artifacts that agree in them
    are the same detector."""
    manifest = artifact.manifest
    exported = {name for record in manifest.engines for name in record.files}
    return {name: entry for name, entry in manifest.files.items() if name not in exported}


def _link_or_copy(path: Path, file: Path, target: Path, *, link: bool) -> None:
    """A second name of the verified file where it replaces the first one, else a copy.

    Args:
        path: Its name, if the artifact has not been replaced meanwhile.
        file: Where it can be read.
        target: The second name.
        link: Try to give it one.
    """
    if link:
        try:
            os.link(path.resolve(), target)
            if target.samefile(file):
                return
            target.unlink()  # of an artifact that came meanwhile
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(file, target)
