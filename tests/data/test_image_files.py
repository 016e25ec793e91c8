"""Tests of reading PNG and TIFF files: conversions, and damaged files that name themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmad_fast.data.image_files import (
    image_size,
    read_depth_png,
    read_mask_png,
    read_rgb_png,
    read_xyz_tiff,
)
from mmad_fast.errors import DataError

READERS = [(read_rgb_png, "scan.png"), (read_xyz_tiff, "scan.tiff")]


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.fixture
def xyz() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(9, 7, 3)).astype(np.float32)


def test_rgb_is_read_as_stored(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png")
    read = read_rgb_png(tmp_path / "a.png")
    np.testing.assert_array_equal(read, rgb)
    assert read.flags.writeable
    assert image_size(tmp_path / "a.png") == (9, 7)


def test_grey_is_repeated_and_alpha_dropped(tmp_path: Path, rgb: np.ndarray) -> None:
    alpha = np.zeros((9, 7, 1), dtype=np.uint8)  # fully transparent: blending would lose colour
    Image.fromarray(np.concatenate([rgb, alpha], axis=-1)).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_rgb_png(tmp_path / "rgba.png"), rgb)
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        read_rgb_png(tmp_path / "grey.png"), np.repeat(rgb[..., :1], 3, axis=-1)
    )


def test_palette_is_resolved(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), mode=None).convert("P")
    image.putpalette([10, 20, 30, 200, 150, 100] + [0] * 762)
    image.save(tmp_path / "p.png")
    assert read_rgb_png(tmp_path / "p.png")[0].tolist() == [[10, 20, 30], [200, 150, 100]]


def test_mask_counts_any_channel(tmp_path: Path) -> None:
    mask = np.zeros((3, 4, 3), dtype=np.uint8)
    mask[1, 2, 2] = 1
    Image.fromarray(mask).save(tmp_path / "m.png")
    assert np.argwhere(read_mask_png(tmp_path / "m.png")).tolist() == [[1, 2]]


def test_16_bits_are_refused_for_colour_and_needed_for_depth(
    tmp_path: Path, rgb: np.ndarray
) -> None:
    depth = np.arange(63, dtype=np.uint16).reshape(9, 7) * 1000
    Image.fromarray(depth).save(tmp_path / "d.png")
    with pytest.raises(DataError, match=r"d\.png has 16 bits per channel; 8 are needed"):
        read_rgb_png(tmp_path / "d.png")
    np.testing.assert_array_equal(read_depth_png(tmp_path / "d.png"), depth)
    Image.fromarray(rgb).save(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"c\.png has 3 channel\(s\) of 8 bits"):
        read_depth_png(tmp_path / "c.png")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_xyz_is_read_as_stored(
    tmp_path: Path, xyz: np.ndarray, dtype: type, compression: str | None, photometric: str
) -> None:
    """minisblack: a page per row, which tifffile has announced as its future default."""
    tifffile.imwrite(
        tmp_path / "a.tiff", xyz.astype(dtype), compression=compression, photometric=photometric
    )
    read = read_xyz_tiff(tmp_path / "a.tiff")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, xyz)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda xyz: xyz[..., 2], r"shape \(9, 7\); an XYZ TIFF must be \(H, W, 3\)"),
        (lambda xyz: np.tile(xyz, 2)[..., :4], r"shape \(9, 7, 4\)"),
        (lambda xyz: np.moveaxis(xyz, -1, 0), r"\(3, 9, 7\).*channels must come last"),
        (lambda xyz: (xyz * 1000).astype(np.int16), r"dtype int16.*float32 or float64"),
    ],
)
def test_wrong_xyz_is_refused(
    tmp_path: Path, xyz: np.ndarray, change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    tifffile.imwrite(tmp_path / "bad.tiff", change(xyz), photometric="minisblack")
    with pytest.raises(DataError, match=rf"bad\.tiff has .*{words}"):
        read_xyz_tiff(tmp_path / "bad.tiff")


@pytest.mark.parametrize(("reader", "name"), READERS)
def test_missing_and_empty_files_are_named(
    tmp_path: Path, reader: Callable[[Path], np.ndarray], name: str
) -> None:
    with pytest.raises(DataError, match=f"{name} is missing"):
        reader(tmp_path / name)
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{name} is empty \(0 bytes\)"):
        reader(tmp_path / name)


@pytest.mark.parametrize(("reader", "name"), READERS)
def test_files_that_cannot_be_reached_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: Callable[[Path], np.ndarray],
    name: str,
) -> None:
    (tmp_path / name).write_bytes(b"content")

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=rf"{name} cannot be read \(Permission denied\)"):
        reader(tmp_path / name)


@pytest.mark.parametrize(("reader", "name"), READERS)
def test_something_else_under_the_name_is_refused(
    tmp_path: Path, reader: Callable[[Path], np.ndarray], name: str
) -> None:
    (tmp_path / name).write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(DataError, match=f"{name} is not a "):
        reader(tmp_path / name)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "a JPEG image"),
        (b"BM\x00\x00", "a BMP image"),
        (b"ply\nformat ascii", "a PLY point cloud"),
        (b"# .PCD v0.7", "a PCD point cloud"),
        (b"PK\x03\x04", "a ZIP archive"),
    ],
)
@pytest.mark.parametrize(("reader", "name"), READERS)
def test_another_kind_of_file_is_called_by_its_name(
    tmp_path: Path, reader: Callable[[Path], np.ndarray], name: str, start: bytes, kind: str
) -> None:
    (tmp_path / name).write_bytes(start + bytes(40))
    with pytest.raises(DataError, match=f"{name} is not a .*, it is {kind}"):
        reader(tmp_path / name)


def test_swapped_files_are_called_by_their_names(
    tmp_path: Path, rgb: np.ndarray, xyz: np.ndarray
) -> None:
    Image.fromarray(rgb).save(tmp_path / "x.tiff", format="PNG")
    tifffile.imwrite(tmp_path / "x.png", xyz, photometric="rgb")
    with pytest.raises(DataError, match=r"x\.png is not a PNG file, it is a TIFF image"):
        read_rgb_png(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.tiff is not a readable TIFF.*it is a PNG image"):
        read_xyz_tiff(tmp_path / "x.tiff")


@pytest.mark.parametrize("cause", [ModuleNotFoundError("No module named 'x'"), ImportError("x.so")])
def test_a_decoder_that_is_not_there_is_named(
    tmp_path: Path, xyz: np.ndarray, monkeypatch: pytest.MonkeyPatch, cause: ImportError
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise cause

    tifffile.imwrite(tmp_path / "z.tiff", xyz, photometric="rgb")
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", refuse)
    with pytest.raises(DataError, match=r"z\.tiff uses a compression that .*pip install imagecod"):
        read_xyz_tiff(tmp_path / "z.tiff")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_cut_off_tiff_is_named_wherever_it_is_cut(
    tmp_path: Path, xyz: np.ndarray, compression: str | None
) -> None:
    path = tmp_path / "cut.tiff"
    tifffile.imwrite(path, xyz, compression=compression, photometric="rgb", metadata=None)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tiff"):
            read_xyz_tiff(path)


def test_a_cut_off_png_is_named_wherever_pixels_are_lost(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(rgb).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 24, 3):  # the last 24 bytes hold no pixels
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.png"):
            read_rgb_png(path)


@pytest.mark.parametrize(("reader", "name"), READERS)
def test_changed_bytes_give_an_image_or_a_data_error(
    tmp_path: Path,
    rgb: np.ndarray,
    xyz: np.ndarray,
    reader: Callable[[Path], np.ndarray],
    name: str,
) -> None:
    path = tmp_path / name
    if name.endswith("png"):
        Image.fromarray(rgb).save(path)
    else:
        tifffile.imwrite(path, xyz, compression="zlib", photometric="rgb", metadata=None)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(2), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            reader(path)
        except DataError as error:
            refused += name in str(error)
    assert refused > 100, "anything but a DataError would have ended the test"
