"""Tests of plain folders of pairs, and of recognising (or not) what a folder holds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmad_fast.data import open_dataset
from mmad_fast.errors import DataError

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
    (tmp_path / "file.zip").touch()
    with pytest.raises(DataError, match=r"file\.zip is a file"):
        open_dataset(tmp_path / "file.zip")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match="hollow is empty"):
        open_dataset(tmp_path / "hollow")


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
