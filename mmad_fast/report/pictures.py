"""Anomaly maps as pictures: heat-map overlays, contact sheets, float TIFF files."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mmad_fast.data.own_pictures import PICTURE_MARK
from mmad_fast.errors import InvalidInputError
from mmad_fast.whole_folder import whole_file

# Dark blue over magenta and orange to pale yellow: lightness rises evenly, so that the order of
# values survives grey print and colour blindness.
_ANCHOR_COLORS = (
    (12, 8, 60),
    (60, 8, 120),
    (112, 14, 128),
    (158, 32, 118),
    (200, 54, 94),
    (232, 88, 64),
    (248, 134, 40),
    (252, 188, 60),
    (252, 246, 164),
)
_OPACITY = (0.06, 0.80)
"""Opacity of the heat map at the bottom and at the top of the value range: nominal regions keep
their looks, anomalous ones are covered."""

_MIN_PICTURE_SIDE = 448
_MAX_ENLARGED_SIDE = 2048
_MIN_LEGEND_LINES = 4
_CONTOUR_COLOR = (255, 255, 255)
_CONTOUR_EDGE_COLOR = (0, 0, 0)
_PAPER_COLOR = (255, 255, 255)
_INK_COLOR = (20, 20, 20)
_MARGIN = 8
_BAR_WIDTH = 16
_SHEET_TILE_HEIGHT = 256
_MAX_NAME_BYTES = 120
"""Of a picture's name without its ending: some file systems take 143 bytes for the whole."""
_NAME_HASH_DIGITS = 12


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet.

    Attributes:
        image: (H, W, 3) uint8.
        caption: Text below it.
    """

    image: NDArray[np.uint8]
    caption: str = ""


def color_map() -> NDArray[np.uint8]:
    """(256, 3) uint8: the colours of values from the bottom to the top of the range."""
    anchors = np.array(_ANCHOR_COLORS, np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def overlay_image(
    rgb: NDArray[np.uint8],
    anomaly_map: NDArray[np.floating],
    *,
    value_range: tuple[float, float] | None = None,
    threshold: float | None = None,
    caption: str = "",
) -> NDArray[np.uint8]:
    """The scan under a heat map of its anomaly map, with a legend, as (H', W', 3) uint8.

    Args:
        rgb: (H, W, 3) uint8.
        anomaly_map: (H, W) float at the same resolution, finite
            (`Result.native_anomaly_map`).
        value_range: (lowest, highest) value of the colours; None: the map's own extremes, the
            highest at least the threshold. Give the same range to pictures that are to be compared.
        threshold: Finite. Regions with a value above it get a white contour and the legend a mark.
        caption: Text below the picture, e.g. name, score and decision.

    Raises:
        InvalidInputError: wrong types or shapes, values that are not finite, or a range whose ends
            are not finite and ascending.
    """
    _check(rgb, anomaly_map)
    low, high = _checked_range(anomaly_map, value_range)
    if value_range is None and threshold is not None:
        high = max(high, threshold)  # a good part must not look as hot as an anomalous one
    scaled = np.clip((anomaly_map.astype(np.float64) - low) / (high - low), 0, 1)
    heat = color_map()[np.round(scaled * 255).astype(np.uint8)]  # (H, W, 3)
    opacity = (_OPACITY[0] + (_OPACITY[1] - _OPACITY[0]) * scaled)[..., None]
    blended = np.round(rgb * (1 - opacity) + heat * opacity).astype(np.uint8)
    factor = _enlargement(rgb.shape[0], rgb.shape[1])
    picture = blended.repeat(factor, axis=0).repeat(factor, axis=1)
    if threshold is not None:
        above = (anomaly_map > threshold).repeat(factor, axis=0).repeat(factor, axis=1)
        _draw_contour(picture, above, width=max(1, min(picture.shape[:2]) // 400))
    return _with_legend(picture, (low, high), threshold, caption)


def picture_names(names: Sequence[str]) -> dict[str, str]:
    """Scan name -> a file's name for its pictures, without ending, each its own.

    "bagel/test/crack/000" becomes bagel_test_crack_000. Where that is not enough to tell scans
    apart, on a file system without capitals too, or the name is too long, a hash of the scan's name
    is added; signs that a file system forbids become "_".

    Args:
        names: The names of all scans whose pictures lie in one folder, each once.
    """
    plain = {name: _file_name(name) for name in names}
    counts = Counter(text.casefold() for text in plain.values())
    return {
        name: text if counts[text.casefold()] == 1 and _stands_alone(text) else _hashed(name, text)
        for name, text in plain.items()
    }


def save_overlay(
    path: Path | str,
    rgb: NDArray[np.uint8],
    anomaly_map: NDArray[np.floating],
    *,
    value_range: tuple[float, float] | None = None,
    threshold: float | None = None,
    caption: str = "",
) -> Path:
    """The path of a PNG of `overlay_image`, whole on disk; arguments and errors are those.

    The file is written beside its place and moved there at the end.
    """
    image = overlay_image(
        rgb, anomaly_map, value_range=value_range, threshold=threshold, caption=caption
    )
    return _save_png(Path(path), image)


def save_map_tiff(path: Path | str, anomaly_map: NDArray[np.floating]) -> Path:
    """The path of a one-channel float32 TIFF of an anomaly map (H, W), whole on disk.

    Raises:
        InvalidInputError: not a (H, W) array of finite floats.
    """
    _check_map(anomaly_map)
    values = np.ascontiguousarray(anomaly_map, np.float32)
    target = Path(path)
    _write_whole(
        target,
        lambda file: tifffile.imwrite(
            file,
            values,
            photometric="minisblack",
            compression="zlib",
            metadata=None,
            software=PICTURE_MARK,
        ),
    )
    return target


def contact_sheet(path: Path | str, tiles: Sequence[Tile], *, num_columns: int = 4) -> Path:
    """The path of a PNG with all tiles in rows, scaled to one height, captions below.

    Args:
        path: The PNG file.
        tiles: In reading order.
        num_columns: Tiles per row, >= 1.

    Raises:
        InvalidInputError: no tiles, num_columns < 1, or a tile that is not (H, W, 3) uint8.
    """
    if not tiles or num_columns < 1:
        raise InvalidInputError(
            f"a contact sheet was asked of {len(tiles)} tiles in {num_columns} columns; at least "
            "one tile and one column are needed"
        )
    images = [_tile_image(tile) for tile in tiles]
    font = ImageFont.load_default(size=13)
    cell_width = max(image.width for image in images) + _MARGIN
    cell_height = _SHEET_TILE_HEIGHT + _line_height(font) + 2 * _MARGIN
    columns = min(num_columns, len(tiles))
    num_rows = -(-len(tiles) // columns)
    size = (columns * cell_width + _MARGIN, num_rows * cell_height + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER_COLOR)
    draw = ImageDraw.Draw(sheet)
    for index, (tile, image) in enumerate(zip(tiles, images, strict=True)):
        left = _MARGIN + (index % columns) * cell_width
        top = _MARGIN + (index // columns) * cell_height
        sheet.paste(image, (left, top))
        text = _shortened(tile.caption, cell_width - _MARGIN, font)
        draw.text((left, top + image.height + _MARGIN // 2), text, _INK_COLOR, font)
    return _save_png(Path(path), np.asarray(sheet))


def _enlargement(height: int, width: int) -> int:
    """How often each pixel is repeated: small scans are made readable, long ones not gigantic."""
    wanted = -(-_MIN_PICTURE_SIDE // min(height, width))
    return max(1, min(wanted, _MAX_ENLARGED_SIDE // max(height, width)))


def _draw_contour(picture: NDArray[np.uint8], above: NDArray[np.bool_], *, width: int) -> None:
    """Outlines the region in place: white just inside it, black just outside."""
    inside = above & ~_shrunk(above, width)
    outside = ~above & ~_shrunk(~above, width)
    picture[outside] = _CONTOUR_EDGE_COLOR
    picture[inside] = _CONTOUR_COLOR


def _shrunk(region: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The region without its rim of `width` pixels; the picture's border is no rim."""
    for _ in range(width):
        padded = np.pad(region, 1, mode="edge")
        across = padded[1:-1, :-2] & padded[1:-1, 2:]
        region = region & across & padded[:-2, 1:-1] & padded[2:, 1:-1]
    return region


def _with_legend(
    picture: NDArray[np.uint8],
    value_range: tuple[float, float],
    threshold: float | None,
    caption: str,
) -> NDArray[np.uint8]:
    """The picture with the colour bar and its numbers at the right and the caption below."""
    low, high = value_range
    height, width = picture.shape[:2]
    font = ImageFont.load_default(size=max(13, height // 40))
    line = _line_height(font)
    height = max(height, _MIN_LEGEND_LINES * line)  # a flat picture's legend is taller than it
    marks = [(high, f"{high:.3g}"), (low, f"{low:.3g}")]
    if threshold is not None and low <= threshold <= high:
        marks.append((threshold, f"{threshold:.3g}"))
    text_width = max(int(font.getlength(text)) for _, text in marks) + _MARGIN
    caption_height = line + _MARGIN if caption else 0
    size = (width + _BAR_WIDTH + text_width + 3 * _MARGIN, height + caption_height)
    sheet = Image.new("RGB", size, _PAPER_COLOR)
    sheet.paste(Image.fromarray(picture), (0, 0))
    bar_top, bar_height = line // 2, height - line
    bar = color_map()[::-1][np.arange(bar_height) * 256 // bar_height]
    bar_image = Image.fromarray(np.ascontiguousarray(bar[:, None].repeat(_BAR_WIDTH, axis=1)))
    left = width + _MARGIN
    sheet.paste(bar_image, (left, bar_top))
    draw = ImageDraw.Draw(sheet)
    taken: list[float] = []
    for value, text in marks:
        y = bar_top + (high - value) / (high - low) * (bar_height - 1)
        draw.line((left, y, left + _BAR_WIDTH + 4, y), _INK_COLOR, width=2)
        if all(abs(y - other) >= line for other in taken):  # numbers must not overlap
            position = (left + _BAR_WIDTH + _MARGIN, y)
            draw.text(position, text, _INK_COLOR, font, anchor="lm")
            taken.append(y)
    if caption:
        text = _shortened(caption, size[0] - 2 * _MARGIN, font)
        draw.text((_MARGIN, height + _MARGIN // 2), text, _INK_COLOR, font)
    return np.asarray(sheet)


def _tile_image(tile: Tile) -> Image.Image:
    _check_rgb(tile.image)
    image = Image.fromarray(np.ascontiguousarray(tile.image))
    scale = min(_SHEET_TILE_HEIGHT / image.height, _MAX_ENLARGED_SIDE / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _shortened(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, with its end replaced by dots where it would be wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    lengths = range(len(text))
    fitting = bisect_right(lengths, width, key=lambda n: font.getlength(text[:n] + "..."))
    return text[: max(0, fitting - 1)] + "..."


def _line_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    top, bottom = font.getbbox("Ag|")[1::2]
    return int(bottom - top) + 4


def _checked_range(
    anomaly_map: NDArray[np.floating], value_range: tuple[float, float] | None
) -> tuple[float, float]:
    if value_range is None:
        low, high = float(anomaly_map.min()), float(anomaly_map.max())
        return (low, high) if high > low else (low, low + 1.0)  # a constant map is all "lowest"
    low, high = (float(value) for value in value_range)
    if not (np.isfinite([low, high]).all() and low < high):
        raise InvalidInputError(
            f"value_range is ({low}, {high}); it must be (lowest, highest), finite and ascending, "
            "or None for the map's own extremes"
        )
    return low, high


def _check(rgb: NDArray[np.uint8], anomaly_map: NDArray[np.floating]) -> None:
    _check_rgb(rgb)
    _check_map(anomaly_map)
    if rgb.shape[:2] != anomaly_map.shape:
        raise InvalidInputError(
            f"rgb is {rgb.shape[0]}x{rgb.shape[1]} and the anomaly map {anomaly_map.shape[0]}x"
            f"{anomaly_map.shape[1]}; they must have the same size: use Result.native_anomaly_map"
        )


def _check_rgb(rgb: NDArray[np.uint8]) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape or rgb.dtype != np.uint8:
        raise InvalidInputError(
            f"the picture is {rgb.dtype} of shape {rgb.shape}; it must be (H, W, 3) uint8"
        )


def _check_map(anomaly_map: NDArray[np.floating]) -> None:
    if (
        anomaly_map.ndim != 2
        or anomaly_map.size == 0
        or not np.issubdtype(anomaly_map.dtype, np.floating)
        or not np.isfinite(anomaly_map).all()
    ):
        raise InvalidInputError(
            f"the anomaly map is {anomaly_map.dtype} of shape {anomaly_map.shape}; it must be "
            "(H, W) floating point with finite values only"
        )


def _file_name(name: str) -> str:
    """A name of signs that every file system takes, which does not end in a dot or a space."""
    text = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]', "_", name)
    return re.sub(r"[. ]$", "_", text)


def _stands_alone(text: str) -> bool:
    """Whether a name needs no hash: short, no device of Windows, no hash of its own."""
    is_device = re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", text, re.IGNORECASE)
    looks_hashed = re.search(rf"-[0-9a-f]{{{_NAME_HASH_DIGITS}}}$", text)
    return not (is_device or looks_hashed or len(text.encode()) > _MAX_NAME_BYTES or not text)


def _hashed(name: str, text: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_NAME_HASH_DIGITS]
    kept = text.encode()[: _MAX_NAME_BYTES - len(digest) - 1].decode("utf-8", "ignore")
    return f"{kept}-{digest}"


def _save_png(path: Path, image: NDArray[np.uint8]) -> Path:
    mark = PngInfo()
    mark.add_text("Software", PICTURE_MARK)
    _write_whole(path, lambda file: Image.fromarray(image).save(file, format="PNG", pnginfo=mark))
    return path


def _write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes to a new file in the same folder, then moves it to `path`; makes the folder."""
    with whole_file(path) as partial, partial.open("wb") as file:
        write(file)
