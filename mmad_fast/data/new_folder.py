"""Writing a folder so that it is there completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmad_fast.errors import DataError
from mmad_fast.scratch_folder import scratch_folder


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling of the target to write into; it takes the target's name at the end.

    If the body raises, or the user interrupts it, nothing is left behind.

    Args:
        target: The folder to make. It must not exist, or be empty.

    Yields:
        The temporary folder.

    Raises:
        DataError: the target is a file or a folder with something in it, or cannot be written.
    """
    try:
        with _new_folder(Path(target).absolute()) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(
            f"{target} cannot be written ({error.strerror or error}); choose a folder with room "
            "where you may write"
        ) from error


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    if target.exists() and not target.is_dir():
        raise DataError(f"{target} is a file; name a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise DataError(
            f"{target} exists and is not empty; nothing is overwritten. Remove it or name another "
            "folder"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.parent, target.name) as temporary:
        temporary.chmod(0o755)  # a scratch folder is private
        yield temporary
        if target.is_dir():
            target.rmdir()
        os.replace(temporary, target)
