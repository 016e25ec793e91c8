"""What a command line names: one scan or a folder of scans."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmad_fast.data.selection import find_scan_files
from mmad_fast.errors import DataError


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("xyz_name", ["part.tiff", "part.tif", "part.TIFF", "part.Tif"])
def test_one_scan_finds_its_points_as_a_folder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool, xyz_name: str
) -> None:
    rgb_folder, xyz_folder = (tmp_path / "rgb", tmp_path / "xyz") if nested else (tmp_path,) * 2
    for path in (rgb_folder / "part.PNG", xyz_folder / xyz_name):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (scan,) = find_scan_files(rgb_folder / "part.PNG")
    assert scan.name == "part"
    assert scan.xyz_path == xyz_folder / xyz_name
    assert find_scan_files(tmp_path)[0].xyz_path.samefile(scan.xyz_path)
    monkeypatch.chdir(rgb_folder)
    assert find_scan_files(Path("part.PNG"))[0].xyz_path.samefile(scan.xyz_path)


def test_a_scan_without_points_names_where_they_were_looked_for(tmp_path: Path) -> None:
    (tmp_path / "part.png").touch()
    with pytest.raises(DataError, match=r"no XYZ file found \(looked for part\.tiff in .*--xyz"):
        find_scan_files(tmp_path / "part.png")
