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


def test_one_scan_finds_the_picture_of_its_normals(tmp_path: Path) -> None:
    for name in ("rgb/part.png", "xyz/part.tiff", "normals/part.PNG", "own.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rgb, own = tmp_path / "rgb" / "part.png", tmp_path / "own.png"
    for found in (find_scan_files(rgb), find_scan_files(tmp_path)):
        assert found[0].normals_path is not None
        assert found[0].normals_path.samefile(tmp_path / "normals" / "part.PNG")
    assert find_scan_files(rgb, normals_path=own)[0].normals_path == own
    with pytest.raises(DataError, match="--normals names the partner of one RGB file"):
        find_scan_files(tmp_path, normals_path=own)
    (tmp_path / "normals" / "part.PNG").unlink()
    assert find_scan_files(rgb)[0].normals_path is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("part.tiff", "named as a file of points; give the PNG file of the colour image"),
        ("part.ply", "named as a file of points"),
        ("scans.zip", "is an archive; unpack it first, then give the PNG file of one scan"),
        ("nope", "nope does not exist; give the PNG file of one scan, a folder of scans"),
    ],
)
def test_what_is_no_colour_image_is_told(tmp_path: Path, name: str, words: str) -> None:
    if name != "nope":
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=words):
        find_scan_files(tmp_path / name)


def test_a_data_set_of_training_scans_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "peach" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no test scans \(peach: no folder test\).*train/good"):
        find_scan_files(tmp_path)


def test_a_category_without_scans_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "a" / "test").mkdir(parents=True)
    for kind, suffix in (("rgb", "png"), ("xyz", "tiff")):
        folder = tmp_path / "b" / "test" / "crack" / kind
        folder.mkdir(parents=True)
        (folder / f"0.{suffix}").touch()
    scans = find_scan_files(tmp_path)
    assert [(scan.name, bool(scan.problem)) for scan in scans] == [
        ("a/test", True),
        ("b/test/crack/0", False),
    ]


def test_a_scan_without_points_names_where_they_were_looked_for(tmp_path: Path) -> None:
    (tmp_path / "part.png").touch()
    with pytest.raises(DataError, match=r"no XYZ file found \(looked for part\.tiff in .*--xyz"):
        find_scan_files(tmp_path / "part.png")
