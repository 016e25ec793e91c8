"""Tests of plain folders of pairs, and of recognising (or not) what a folder holds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmad_fast.data import open_dataset
from mmad_fast.data.own_pictures import own_pictures
from mmad_fast.data.selection import find_scan_files
from mmad_fast.errors import DataError
from mmad_fast.report import save_map_tiff, save_overlay

SHARED = Path(
    os.environ.get("MMAD_FAST_SHARED", Path(__file__).parents[2].resolve().parent / "shared")
)


def write_pair(rgb_path: Path, xyz_path: Path) -> None:
    for path in (rgb_path, xyz_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (9, 8, 7)).save(rgb_path)
    tifffile.imwrite(xyz_path, np.full((4, 5, 3), 0.5, dtype=np.float32), photometric="rgb")


@pytest.mark.parametrize("nested", [False, True])
def test_pairs_are_test_scans_of_unknown_defect(tmp_path: Path, nested: bool) -> None:
    root = tmp_path / "frames"
    rgb, xyz = (root / "rgb", root / "xyz") if nested else (root, root)
    for name in ("b", "a"):
        write_pair(rgb / f"{name}.png", xyz / f"{name}.tiff")
    (root / "notes.txt").write_text("not a scan")
    dataset = open_dataset(root)
    assert (dataset.layout, dataset.categories()) == ("folder", ("frames",))
    assert dataset.splits("frames") == ("test",)
    scans = dataset.scans("frames", "test")
    assert [(s.name, s.defect, s.split) for s in scans] == [("a", "", "test"), ("b", "", "test")]
    assert scans[0].load().size == (4, 5)
    assert scans[0].load_ground_truth() is None
    assert scans[0].load().normals is None


def test_suffixes_in_capitals_and_short_are_found(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.PNG", tmp_path / "a.TIF")
    assert len(open_dataset(tmp_path).scans(tmp_path.name, "test")) == 1


def test_a_folder_has_no_train_split(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.png", tmp_path / "a.tiff")
    with pytest.raises(DataError, match="no 'train' split.*train/good"):
        open_dataset(tmp_path).scans(tmp_path.name, "train")


def test_a_file_without_partner_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.png", tmp_path / "a.tiff")
    write_pair(tmp_path / "b.png", tmp_path / "c.tiff")
    with pytest.raises(DataError, match=r"b\.png: no file of the same name"):
        open_dataset(tmp_path).scans(tmp_path.name, "test")


def test_what_cannot_be_opened_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "file.txt").touch()
    with pytest.raises(DataError, match=r"file\.txt is a file"):
        open_dataset(tmp_path / "file.txt")
    (tmp_path / "mvtec_3d.tar.xz").touch()
    with pytest.raises(DataError, match=r"mvtec_3d\.tar\.xz is an archive; unpack it first"):
        open_dataset(tmp_path / "mvtec_3d.tar.xz")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match="hollow is empty"):
        open_dataset(tmp_path / "hollow")


def found_in(folder: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(folder)


def test_an_archive_or_an_artifact_in_place_of_data_is_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    found_in(tmp_path, "it is a detector artifact.*mmad-fast infer ARTIFACT SCANS")
    (tmp_path / "manifest.json").rename(tmp_path / "set.zip")
    found_in(tmp_path, r"no scans, but the archive set\.zip; unpack it first")


def test_a_folder_of_other_images_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPG", "a.tiff", "b.tiff"):
        (tmp_path / name).write_bytes(b"x")
    found_in(tmp_path, r"no scans: .* has no \*\.png, it has 2 files \.jpg, 2 files \.tiff")
    for name in ("a", "b"):
        (tmp_path / "rgb").mkdir(exist_ok=True)
        (tmp_path / "xyz").mkdir(exist_ok=True)
        (tmp_path / f"{name}.tiff").rename(tmp_path / "xyz" / f"{name}.tiff")
    (tmp_path / "a.jpg").rename(tmp_path / "rgb" / "a.jpg")
    with pytest.raises(DataError, match=r"rgb has no \*\.png, it has 1 file \.jpg; .*write PNG"):
        open_dataset(tmp_path).scans_as_found(tmp_path.name, "test")
    Image.new("RGB", (5, 4)).save(tmp_path / "rgb" / "b.png")
    alone, _ = open_dataset(tmp_path).scans_as_found(tmp_path.name, "test")
    assert "xyz/a.tiff: no file of the same name in" in alone.problem
    assert "(*.png) (a.jpg is none); every scan needs both" in alone.problem
    for file in (*(tmp_path / "rgb").iterdir(), *(tmp_path / "xyz").iterdir()):
        file.rename(tmp_path / file.name)
    for name in ("rgb", "xyz"):
        (tmp_path / name).rmdir()
    alone, _ = open_dataset(tmp_path).scans_as_found(tmp_path.name, "test")
    assert "(*.png) (a.jpg is none); every scan needs both" in alone.problem


@pytest.mark.parametrize("part", ["rgb", "xyz", "normals"])
def test_half_of_a_folder_of_scans_names_the_whole(tmp_path: Path, part: str) -> None:
    write_pair(tmp_path / "day" / "rgb" / "a.png", tmp_path / "day" / "xyz" / "a.tiff")
    write_pair(tmp_path / "day" / "normals" / "a.png", tmp_path / "day" / "xyz" / "a.tiff")
    found_in(tmp_path / "day" / part, f"is one part of a folder of scans; .*: {tmp_path}/day$")
    found_in(tmp_path, r"holds folders of scans \(day\); give one of them")


def test_names_pair_however_their_accents_are_spelt(tmp_path: Path) -> None:
    composed, apart = "Geh\u00e4use", "Geha\u0308use"
    write_pair(tmp_path / f"{apart}.png", tmp_path / f"{composed}.tiff")
    (scan,) = open_dataset(tmp_path).scans(tmp_path.name, "test")
    assert scan.name == composed
    assert scan.load().size == (4, 5)
    assert find_scan_files(scan.rgb_path)[0].name == composed


def test_a_scan_without_partner_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("a", "d"):
        write_pair(tmp_path / f"{name}.png", tmp_path / f"{name}.tiff")
    write_pair(tmp_path / "b.png", tmp_path / "c.tiff")
    write_pair(tmp_path / "e.png", tmp_path / "e.tiff")
    write_pair(tmp_path / "e.PNG", tmp_path / "e.tif")
    scans = open_dataset(tmp_path).scans_as_found(tmp_path.name, "test")
    assert [scan.name for scan in scans] == ["a", "b", "c", "d", "e"]
    assert [bool(scan.problem) for scan in scans] == [False, True, True, False, True]
    for scan, words in zip(
        (scans[1], scans[2], scans[4]),
        (r"b\.png: no file of the same", r"c\.tiff: no file of the same", "e.* have the same stem"),
        strict=True,
    ):
        with pytest.raises(DataError, match=words):
            scan.load()
    with pytest.raises(DataError, match=r"b\.png: .*\(2 more cannot be read\)"):
        open_dataset(tmp_path).scans(tmp_path.name, "test")


def test_pictures_of_infer_are_no_scans(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.png", tmp_path / "a.tiff")
    anomaly_map = np.zeros((4, 5), np.float32)
    save_overlay(tmp_path / "a_overlay.png", np.zeros((4, 5, 3), np.uint8), anomaly_map)
    save_map_tiff(tmp_path / "a_map.tiff", anomaly_map)
    # Somebody's scan that is called so is one.
    write_pair(tmp_path / "b_map.png", tmp_path / "b_map.tiff")
    scans = open_dataset(tmp_path).scans(tmp_path.name, "test")
    assert [scan.name for scan in scans] == ["a", "b_map"]
    assert [path.name for path in own_pictures([tmp_path])] == ["a_map.tiff", "a_overlay.png"]
    for name in ("a.png", "a.tiff", "b_map.png", "b_map.tiff"):
        (tmp_path / name).unlink()
    found_in(tmp_path, "no scans, but 2 pictures that infer wrote; give the folder of the scans")


def test_an_unknown_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "only.png").touch()
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    message = str(caught.value)
    for words in ("MVTec 3D-AD", "Eyecandies", "folder of pairs", "Found: pictures"):
        assert words in message


def test_real_frames_reproject_onto_their_own_pixels() -> None:
    frames = SHARED / "data" / "real_frames"
    if not frames.is_dir():
        pytest.skip(f"{frames} is not here (set MMAD_FAST_SHARED)")
    dataset = open_dataset(frames)
    assert dataset.layout == "folder"
    scans = dataset.scans("real_frames", "test")
    assert [scan.name for scan in scans] == [
        "bottles",
        "laptop_0",
        "laptop_1",
        "laptop_2",
        "office",
    ]
    scan = scans[0].load()
    valid = scan.xyz[..., 2] > 0
    assert 0.78 < valid.mean() < 0.79
    u = scan.xyz[valid][:, 0] / scan.xyz[valid][:, 2] * 525 + 319.5
    np.testing.assert_allclose(u, np.nonzero(valid)[1], atol=0.01)


def test_the_rendered_set_is_recognised() -> None:
    rendered = SHARED / "data" / "rendered3d"
    if not rendered.is_dir():
        pytest.skip(f"{rendered} is not here (set MMAD_FAST_SHARED)")
    dataset = open_dataset(rendered)
    assert (dataset.layout, dataset.categories()) == ("mvtec3d", ("cookie", "gear", "potato"))
    for split in ("train", "test"):
        images = list((rendered / "gear" / split).glob("*/rgb/*.png"))
        assert len(dataset.scans("gear", split)) == len(images) > 0
    mask = dataset.scans("gear", "test")[-1].load_ground_truth()
    assert mask is not None
    assert 0 < mask.mean() < 0.1


def test_a_pipe_among_the_scans_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a_map.tiff")
    assert own_pictures([tmp_path]) == ()
