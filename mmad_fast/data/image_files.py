"""Reading a data set's image files: RGB PNG, XYZ TIFF, mask PNG. A fault names its file.

Nothing is decoded that announces, or expands to, more than `file_limits` allows."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mmad_fast.data.file_limits import (
    ONE_FILE_ONLY,
    check_pixels,
    check_png,
    check_tiff_directories,
    read_tiff_series,
)
from mmad_fast.errors import DataError

# What it says of damaged files is in our error; without a handler Python prints it as well.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH_OFFSET = 24  # signature (8), chunk length and name (8), width and height (8)
# What Pillow and tifffile raise on damaged content; anything else is a mistake of ours.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    ImportError,  # of the package that decodes a compression
)
# What the first bytes of a file that lies in the wrong place say that it is.
_SIGNATURES = {
    b"\xff\xd8\xff": "a JPEG image",
    b"BM": "a BMP image",
    b"GIF8": "a GIF image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    PNG_SIGNATURE: "a PNG image",
    b"ply": "a PLY point cloud",
    b"# .PCD": "a PCD point cloud",
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
}


def read_rgb_png(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: the colours of a PNG file with 8 bits per channel.

    Grey is repeated three times, a palette is resolved, alpha is dropped (not blended).

    Raises:
        DataError: the file is missing, empty, no PNG, damaged or cut off, has more than 100
            million pixels, or 16 bits per channel (Pillow would drop the low byte without a word).
    """
    _check_png(path)
    with _reading(path, "PNG image"), Image.open(path) as image:
        image.load()
        return np.array(image.convert("RGB"), dtype=np.uint8)


def read_mask_png(path: Path) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels of a mask PNG that are non-zero in any colour channel.

    Args:
        path: The PNG file; 0 is nominal, anything else anomalous.

    Raises:
        DataError: as `read_rgb_png`.
    """
    return np.asarray(read_rgb_png(path).any(axis=-1), dtype=np.bool_)


def read_depth_png(path: Path) -> NDArray[np.uint16]:
    """(H, W) uint16: a PNG file with one channel of 16 bits.

    Raises:
        DataError: missing, empty, no PNG, damaged or cut off, or not one channel of 16 bits,
            or more than 100 million pixels.
    """
    header = _png_header(path)
    check_png(path, header)
    bit_depth = header[_BIT_DEPTH_OFFSET]
    with _reading(path, "PNG image"), Image.open(path) as image:
        image.load()
        bands, values = len(image.getbands()), np.array(image)
    if bit_depth != 16 or bands != 1:
        raise DataError(
            f"{path} has {bands} channel(s) of {bit_depth} bits; a depth PNG must have one channel "
            "of 16 bits"
        )
    return values.astype(np.uint16)


def read_xyz_tiff(path: Path) -> NDArray[np.floating]:
    """(H, W, 3) float32 or float64: the points of an organised XYZ TIFF, as stored.

    Args:
        path: The TIFF file, one page with channels last.

    Returns:
        The coordinates in the file's own unit; (0, 0, 0) or NaN is a missing point.

    Raises:
        DataError: the file is missing, empty, no TIFF, damaged or cut off, not (H, W, 3), not
            floating point, or more than 100 million pixels.
    """
    _check_file(path)
    with _reaching(path):
        check_tiff_directories(path)
    with _reading(path, "TIFF image"), tifffile.TiffFile(path, **ONE_FILE_ONLY) as tiff:
        series = tiff.series[0]  # not the first page: some writers store an image row by row
        _check_xyz(path, series.shape, series.dtype)
        end = _announced_bytes(series)
        if end > path.stat().st_size:
            raise DataError(
                f"{path} is cut off: it announces {end} bytes and has {path.stat().st_size}; copy "
                "or export it again"
            )
        return np.ascontiguousarray(read_tiff_series(path, series))


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) in pixels, from a PNG file's header alone.

    Raises:
        DataError: the file is missing, empty or no PNG.
    """
    width, height = struct.unpack(">II", _png_header(path)[16:24])
    return height, width


def _check_file(path: Path) -> None:
    with _reaching(path):
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no file but a folder or device; give the path of a file")
        if not path.is_file():
            raise DataError(f"{path} is missing; check the path, or copy the data set again")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes); copy or export it again")
        with path.open("rb"):
            pass


def _png_header(path: Path) -> bytes:
    _check_file(path)
    with _reaching(path), path.open("rb") as file:
        header = file.read(_BIT_DEPTH_OFFSET + 2)
    if not header.startswith(PNG_SIGNATURE[: len(header)]):
        raise DataError(
            f"{path} is not a PNG file, {_kind_by(header)}; save the colour image as an 8-bit RGB "
            "PNG"
        )
    if len(header) < _BIT_DEPTH_OFFSET + 2:
        raise DataError(f"{path} is cut off within the PNG header; copy or export it again")
    return header


def _kind_by(header: bytes) -> str:
    """For messages: what a file is that starts with these bytes."""
    for signature, kind in _SIGNATURES.items():
        if header.startswith(signature):
            return f"it is {kind}"
    return f"it starts with {header[:4]!r}"


def _check_png(path: Path) -> None:
    header = _png_header(path)
    check_png(path, header)
    if header[_BIT_DEPTH_OFFSET] == 16:
        raise DataError(
            f"{path} has 16 bits per channel; 8 are needed. Convert it with the exposure you want, "
            "e.g. divide by 257"
        )


def _check_xyz(path: Path, shape: tuple[int, ...], dtype: np.dtype | None) -> None:
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        hint = "; channels must come last" if len(shape) == 3 and shape[0] == 3 else ""
        raise DataError(
            f"{path} has shape {tuple(shape)}; an XYZ TIFF must be (H, W, 3) with x, y, z in the "
            f"last axis{hint}"
        )
    check_pixels(path, *shape[:2])
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise DataError(f"{path} has dtype {dtype}; an XYZ TIFF must hold float32 or float64")


def _announced_bytes(series: tifffile.TiffPageSeries) -> int:
    """Where the last pixel should end in the file; tifffile itself may fill up with zeros."""
    if series.dataoffset is not None:
        return int(series.dataoffset + series.nbytes)
    return max(
        offset + count
        for page in series.pages
        if page is not None
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    )


@contextmanager
def _reaching(path: Path) -> Iterator[None]:
    """Turns the system's refusals into errors that name the file."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); check that you may read it and "
            "that its disk is there"
        ) from error


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except tifffile.TiffFileError as error:
        with path.open("rb") as file:
            found = _kind_by(file.read(_BIT_DEPTH_OFFSET))
        raise DataError(
            f"{path} is not a readable {kind}, {found} ({error}); export the points again, as a "
            "float TIFF (H, W, 3) with a point per pixel"
        ) from error
    except _DECODE_ERRORS as error:
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            raise DataError(
                f"{path} uses a compression that needs one more package ({error}): "
                "`pip install imagecodecs`, or save it uncompressed or with zlib"
            ) from error
        raise DataError(
            f"{path} cannot be read as a {kind}, it is damaged or cut off "
            f"({type(error).__name__}: {error}); copy or export it again"
        ) from error
