"""What a picture file may ask for, found out before it is decoded: a few bytes can announce, or
expand to, more than any memory holds."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import DataError

MAX_PIXELS = 100_000_000
"""Of a picture: a line scanner's 4096 x 20,000 is 82 million."""
MAX_EXTRA_BYTES = 2**22
"""Of a file, beyond what its pixels take without compression: profiles, thumbnails, text."""
MAX_TIFF_PAGES = 2**16
"""Some writers store an image row by row, a page each."""
MAX_TIFF_TAGS = 1024
"""Per page."""
MAX_SEGMENT_PIXELS = 2**22
"""Of a strip or tile that is larger than the image."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the colour type."""
TIFF_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
"""Of a value, by the number of its type."""
DEFLATE = (8, 32946)
BUILT_IN = (1, *DEFLATE, 32773)
"""What tifffile reads without imagecodecs: none, Deflate, PackBits."""
COMPRESSIONS = (*BUILT_IN, 5, 34925, 34926, 50000)
"""Besides LZW, LZMA, Zstandard: all that say how much they expand to, or can be
stopped. Others are of pictures for the eye, or hold an image of a size of their own."""
_MICROSCOPES = (
    "lsm mmstack ome ndtiff fluoview stk sis svs scn qpi ndpi bif avs eer philips scanimage nih "
    "mdgel"
)
ONE_FILE_ONLY: dict[str, Any] = {f"is_{kind}": False for kind in _MICROSCOPES.split()}
"""For tifffile: leave microscopes' formats alone, some of which name further files to read."""


def check_pixels(path: Path, height: int, width: int) -> None:
    """Nothing, where a picture has few enough pixels.

    Raises:
        DataError: it has more than MAX_PIXELS.
    """
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{path} announces {height} x {width} pixels; at most {MAX_PIXELS:,} are read: it is "
            "damaged, or cut the picture into parts"
        )


def check_png(path: Path, header: bytes) -> None:
    """Nothing, where a PNG announces a picture that can be held and is no larger than it needs.

    Args:
        header: The file's first 26 bytes.

    Raises:
        DataError: too many pixels, or a file that is larger than the pixels without compression.
    """
    width, height, depth, color_type = struct.unpack(">IIBB", header[16:26])
    check_pixels(path, height, width)
    row_bytes = 1 + (width * PNG_CHANNELS.get(color_type, 4) * depth + 7) // 8
    size, needed = path.stat().st_size, height * row_bytes
    if size > needed + needed // 64 + MAX_EXTRA_BYTES:
        raise DataError(
            f"{path} has {size} bytes and its {height} x {width} pixels take {needed}; it is "
            "damaged: export it again"
        )


def check_tiff_directories(path: Path) -> None:
    """Nothing, where the directories of a TIFF are few, lie in the file and end.

    Raises:
        DataError: too many pages or tags, tags that take more than MAX_EXTRA_BYTES, a directory or
            a tag's values beyond the end of the file, or a chain of pages that comes back.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(16)
        if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return  # tifffile says what it is
        order = "<" if header[:2] == b"II" else ">"
        is_big = b"+" in header[:4]
        start, code = (8, "Q") if is_big else (4, "I")
        offsets: set[int] = set()
        num_value_bytes = 0
        (offset,) = _unpack(order + code, header[start:])
        while offset:
            if offset in offsets or len(offsets) >= MAX_TIFF_PAGES:
                raise _damaged_tiff(path, f"has more than {len(offsets)} pages, or a loop of them")
            offsets.add(offset)
            value_bytes, offset = _read_directory(path, file, size, offset, order, is_big)
            num_value_bytes += value_bytes
            if num_value_bytes > MAX_EXTRA_BYTES:
                raise _damaged_tiff(path, f"has tags of more than {MAX_EXTRA_BYTES} bytes")


def _read_directory(
    path: Path, file: BinaryIO, size: int, offset: int, order: str, is_big: bool
) -> tuple[int, int]:
    """(bytes of the tags' values that lie elsewhere, offset of the next directory or 0)."""
    count_code, entry, code = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    file.seek(min(offset, size))
    (num_tags,) = _unpack(order + count_code, file.read(struct.calcsize(order + count_code)))
    if num_tags > MAX_TIFF_TAGS:
        raise _damaged_tiff(path, f"has a page of {num_tags} tags")
    inline = 8 if is_big else 4
    entry_bytes = struct.calcsize(order + entry)
    tags = file.read(num_tags * entry_bytes)
    rest = file.read(inline)
    if len(tags) < num_tags * entry_bytes:
        raise _damaged_tiff(path, "is cut off: it has a directory beyond its end")
    num_value_bytes = 0
    for _, kind, count, value in struct.iter_unpack(order + entry, tags):
        num_bytes = count * (TIFF_TYPE_BYTES[kind] if kind < len(TIFF_TYPE_BYTES) else 1)
        if num_bytes <= inline:
            continue
        num_value_bytes += num_bytes
        if _unpack(order + code, value)[0] + num_bytes > size:
            raise _damaged_tiff(path, "is cut off: it has a tag whose values lie beyond its end")
    return num_value_bytes, _unpack(order + code, rest)[0]


def read_tiff_series(path: Path, series: Any) -> NDArray[Any]:
    """The image of a tifffile.TiffPageSeries whose shape has been checked; no strip or tile of it
    expands beyond what the image needs.

    Raises:
        DataError: strips or tiles much larger than the image, more bytes than the image needs
            without compression, data that expand to more than their strip or tile, or a compression
            that cannot be limited here.
    """
    pages: list[Any] = [page for page in series.pages if page]
    for keyframe in {id(page.keyframe): page.keyframe for page in pages}.values():
        _check_keyframe(path, keyframe)
    for page in pages:
        needed = len(page.databytecounts) * _segment_bytes(page.keyframe)
        if sum(page.databytecounts) > needed + needed // 8 + MAX_EXTRA_BYTES:
            raise _damaged_tiff(path, "holds more data than its pixels take")
    if pages[0].keyframe.compression not in DEFLATE or find_spec("imagecodecs") is not None:
        return series.asarray()  # limited by its kind, or by imagecodecs
    # tifffile inflates a segment to whatever it expands to. Strips without predictor are the image.
    strips = [data for page in pages for data in _inflated_segments(path, page)]
    if all(page.keyframe.predictor == 1 and not page.keyframe.is_tiled for page in pages):
        image = np.frombuffer(b"".join(strips), series.dtype.newbyteorder(series.parent.byteorder))
        if image.size == series.size and pages[0].keyframe.planarconfig == 1:
            return image.astype(series.dtype).reshape(series.shape)
    return series.asarray()


def _check_keyframe(path: Path, page: Any) -> None:
    """Of what several pages have in common."""
    if page.dtype is None:
        raise _damaged_tiff(path, "has a page without pixels")
    if math.prod(page.chunks) > max(MAX_SEGMENT_PIXELS, 2 * page.size):
        raise _damaged_tiff(path, f"has strips or tiles of {page.chunks}")
    if page.compression not in COMPRESSIONS:
        raise DataError(
            f"{path} has compression {page.compression!s}; save it uncompressed or with zlib"
        )
    if page.compression not in BUILT_IN and find_spec("imagecodecs") is None:
        raise DataError(
            f"{path} uses compression {page.compression!s}, which needs one more package: "
            "`pip install imagecodecs`, or save it uncompressed or with zlib"
        )


def _segment_bytes(page: Any) -> int:
    """Of a whole strip or tile, without compression."""
    return math.prod(page.chunks) * np.dtype(page.dtype).itemsize


def _inflated_segments(path: Path, page: Any) -> Iterator[bytes]:
    limit, file = _segment_bytes(page.keyframe), page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        data = inflated(file.read(count), limit)
        if len(data) > limit:
            raise _damaged_tiff(path, f"has a strip or tile of more than {limit} bytes")
        yield data


def inflated(data: bytes, limit: int) -> bytes:
    """Deflate data, expanded to no more than limit + 1 bytes."""
    return zlib.decompressobj().decompress(data, limit + 1)


def _damaged_tiff(path: Path, what: str) -> DataError:
    return DataError(f"{path} is not a readable TIFF image: it {what}; export it again")


def _unpack(code: str, data: bytes) -> tuple[int, ...]:
    """As struct.unpack of the first bytes; what the file lacks is 0."""
    size = struct.calcsize(code)
    return struct.unpack(code, data[:size].ljust(size, b"\0"))
