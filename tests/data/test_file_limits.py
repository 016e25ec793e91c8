"""Files that announce, or expand to, more than they should: refused before they are decoded."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mmad_fast.data import file_limits
from mmad_fast.data.image_files import read_rgb_png, read_xyz_tiff
from mmad_fast.errors import DataError

SIDE = 128
PIXEL_BYTES = SIDE * SIDE * 12
Tags = dict[int, tuple[int, int, int]]


def tiff(data: bytes, *, next_at: int = 0, **changes: tuple[int, int, int] | None) -> bytes:
    """A TIFF of one strip of SIDE x SIDE x 3 float32; changes: t256=(type, count, value)."""
    tags: dict[str, tuple[int, int, int] | None] = {
        "t256": (4, 1, SIDE),
        "t257": (4, 1, SIDE),
        "t258": (3, 3, 0),
        "t259": (3, 1, 1),
        "t262": (3, 1, 2),
        "t273": (4, 1, 0),
        "t277": (3, 1, 3),
        "t278": (4, 1, SIDE),
        "t279": (4, 1, len(data)),
        "t284": (3, 1, 1),
        "t339": (3, 3, 0),
        **changes,
    }
    given = {name: tag for name, tag in sorted(tags.items()) if tag is not None}
    end = 8 + 2 + 12 * len(given) + 4
    places = {"t258": end, "t339": end + 6, "t273": end + 12}
    directory = struct.pack("<H", len(given))
    for name, (kind, count, value) in given.items():
        placed = places[name] if name in places and name not in changes else value
        directory += struct.pack("<HHII", int(name[1:]), kind, count, placed)
    extra = struct.pack("<6H", 32, 32, 32, 3, 3, 3)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", next_at) + extra + data


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


PIXELS = chunk(b"IDAT", zlib.compress(bytes(SIDE * (1 + 3 * SIDE))))
BOMB = zlib.compress(bytes(2**27), 9)
HUGE = 2**31 - 1

TIFFS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a strip that expands": (lambda: tiff(BOMB, t259=(3, 1, 8)), "strip or tile of more than"),
    "announced pixels": (
        lambda: tiff(BOMB, t259=(3, 1, 8), t256=(4, 1, 10**5), t257=(4, 1, 10**5)),
        "announces 100000 x 100000 pixels; at most 100,000,000",
    ),
    "a loop of pages": (lambda: tiff(bytes(PIXEL_BYTES), next_at=8), "a loop of them"),
    "tags without end": (lambda: tiff(b"", t270=(2, HUGE, 8)), "values lie beyond its end"),
    "too many tags": (lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(2**20), "a page of 65535 tags"),
    "a directory beyond the end": (lambda: b"II*\0\xf0\xff\xff\xff" + bytes(64), "TIFF image"),
    "huge tiles": (
        lambda: tiff(
            bytes(64),
            t259=(3, 1, 8),
            t273=None,
            t278=None,
            t279=None,
            t322=(4, 1, 2**20),
            t323=(4, 1, 2**20),
            t324=(4, 1, 8),
            t325=(4, 1, 64),
        ),
        "has strips or tiles of",
    ),
    "a picture's compression": (lambda: tiff(bytes(64), t259=(3, 1, 7)), "save it uncompressed"),
    "more data than pixels": (
        lambda: tiff(bytes(2**23), t259=(3, 1, 8)),
        "more data than its pixels take",
    ),
}
PNGS: dict[str, tuple[Callable[[], bytes], str]] = {
    "announced pixels": (lambda: png(10**5, 10**5, PIXELS), "announces 100000 x 100000 pixels"),
    "a profile that expands": (
        lambda: png(SIDE, SIDE, chunk(b"iCCP", b"a\0\0" + BOMB), PIXELS),
        "cannot be read as a PNG",
    ),
    "text that expands": (
        lambda: png(SIDE, SIDE, *[chunk(b"zTXt", b"a\0\0" + BOMB)] * 20, PIXELS),
        "cannot be read as a PNG",
    ),
    "a file that is too large": (
        lambda: png(SIDE, SIDE, chunk(b"teXt", bytes(2**23)), PIXELS),
        f"its {SIDE} x {SIDE} pixels take",
    ),
}
READERS = {".tiff": read_xyz_tiff, ".png": read_rgb_png}
CASES = [
    pytest.param(make, words, suffix, id=f"{name}{suffix}")
    for suffix, cases in ((".tiff", TIFFS), (".png", PNGS))
    for name, (make, words) in cases.items()
]


@pytest.mark.parametrize(("make", "words", "suffix"), CASES)
def test_bombs_are_refused_before_they_are_decoded(
    tmp_path: Path, make: Callable[[], bytes], words: str, suffix: str
) -> None:
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words):
            READERS[suffix](path)
        assert tracemalloc.get_traced_memory()[1] < 24 * 2**20, "bytes, at the peak"
    finally:
        tracemalloc.stop()


def test_the_file_that_the_bombs_are_made_of_is_read(tmp_path: Path) -> None:
    xyz = np.random.default_rng(0).normal(size=(SIDE, SIDE, 3)).astype(np.float32)
    for compression, data in ((1, xyz.tobytes()), (8, zlib.compress(xyz.tobytes()))):
        (tmp_path / "a.tiff").write_bytes(tiff(data, t259=(3, 1, compression)))
        np.testing.assert_array_equal(read_xyz_tiff(tmp_path / "a.tiff"), xyz)
    (tmp_path / "a.png").write_bytes(png(SIDE, SIDE, PIXELS))
    assert read_rgb_png(tmp_path / "a.png").shape == (SIDE, SIDE, 3)


def test_a_sparse_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    """16 GB of which the disk holds a few blocks."""
    announced = tmp_path / "announced.tiff"
    tifffile.imwrite(announced, shape=(36_000, 36_000, 3), dtype="f4", photometric="rgb")
    with pytest.raises(DataError, match="announces 36000 x 36000 pixels"):
        read_xyz_tiff(announced)
    trailing = tmp_path / "trailing"
    for content, suffix in ((tiff(bytes(PIXEL_BYTES)), ".tiff"), (png(SIDE, SIDE, PIXELS), ".png")):
        trailing.write_bytes(content)
        os.truncate(trailing, 16 << 30)
        link = tmp_path / f"link{suffix}"
        link.symlink_to(trailing)
        if suffix == ".tiff":  # its pixels are where they should be
            assert read_xyz_tiff(link).shape == (SIDE, SIDE, 3)
        else:
            with pytest.raises(DataError, match="pixels take"):
                read_rgb_png(link)


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_what_is_no_file_is_not_opened(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "zeros").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("zeros", "pipe", "."):
        path = tmp_path / f"{name}{suffix}"
        path.symlink_to(tmp_path / name)
        with pytest.raises(DataError, match="is no file but a folder or device"):
            READERS[suffix](path)


def test_a_microscope_file_does_not_open_others(tmp_path: Path) -> None:
    """An OME-TIFF may say that its pixels lie in other files."""
    xyz = np.ones((8, 8, 3), np.float32)
    tifffile.imwrite(tmp_path / "secret.ome.tiff", xyz * 7, photometric="rgb", ome=True)
    with tifffile.TiffFile(tmp_path / "secret.ome.tiff") as secret:
        text = secret.ome_metadata
    assert text is not None
    moved = text.replace("<TiffData ", '<TiffData FirstC="0" ').replace(
        "</TiffData>", '<UUID FileName="secret.ome.tiff">urn:uuid:1</UUID></TiffData>'
    )
    tifffile.imwrite(tmp_path / "a.tiff", xyz, photometric="rgb", description=moved, metadata=None)
    np.testing.assert_array_equal(read_xyz_tiff(tmp_path / "a.tiff"), xyz)


def test_real_sizes_are_within_the_limits(tmp_path: Path) -> None:
    file_limits.check_pixels(tmp_path, 20_000, 4096)  # a line scanner
    file_limits.check_pixels(tmp_path, 4000, 5000)
    with pytest.raises(DataError, match="at most 100,000,000 are read"):
        file_limits.check_pixels(tmp_path, 10_001, 10_000)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 7}])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_deflated_images_are_read_as_tifffile_reads_them(
    tmp_path: Path, options: dict, byteorder: str, planar: str, dtype: type
) -> None:
    xyz = np.random.default_rng(0).normal(size=(40, 33, 3)).astype(dtype)
    if planar == "separate":
        xyz = np.ascontiguousarray(np.moveaxis(xyz, -1, 0))
    path = tmp_path / "a.tiff"
    tifffile.imwrite(
        path,
        xyz,
        photometric="rgb",
        compression="zlib",
        byteorder=byteorder,
        planarconfig=planar,
        **options,
    )
    if planar == "separate":
        with pytest.raises(DataError, match="channels must come last"):
            read_xyz_tiff(path)
        return
    read = read_xyz_tiff(path)
    np.testing.assert_array_equal(read, tifffile.imread(path))
    assert read.dtype == np.dtype(dtype)
    assert read.dtype.isnative
    assert read.flags.writeable


@pytest.mark.parametrize("size", [0, 5, 2**20, 2**20 + 1])
def test_data_are_inflated_up_to_a_limit(size: int) -> None:
    data = zlib.compress(bytes(size))
    assert len(file_limits.inflated(data, 2**24)) == size
    assert len(file_limits.inflated(data[:-6], 2**24)) <= size
    assert len(file_limits.inflated(zlib.compress(bytes(2**23)), 2**20)) == 2**20 + 1
