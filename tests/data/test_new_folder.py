"""A folder that is there completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmad_fast.data.new_folder import new_folder
from mmad_fast.errors import DataError


@pytest.mark.parametrize("place", ["file/new", "/proc/new"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=rf"{place} cannot be written \(.*choose a folder"),
        new_folder(tmp_path / place),
    ):
        pytest.fail("the body must not run")


def test_a_failing_write_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "set") as folder:
            (folder / "half").touch()
            raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"set cannot be written \(No space left"):
        write()
    assert list(tmp_path.iterdir()) == []
