"""Damaged PNG and TIFF files through every reader: right are an image or a DataError that names the
file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from robustness.attack import ANSWER, REFUSAL, WRONG_EXCEPTION, Outcome, Work, run_guarded

from mmad_fast.data.image_files import (
    image_size,
    read_depth_png,
    read_mask_png,
    read_rgb_png,
    read_xyz_tiff,
)
from mmad_fast.errors import DataError

LIMIT_S = 20.0
LIMIT_MIB = 1024.0
WORDS = (0, 1, 255, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**20, 100_000)


def write_files(folder: Path) -> list[tuple[bytes, Callable[[Path], object]]]:
    """The contents of whole files, each with a reader."""
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(40, 33, 3)).astype(np.float32)
    rgb = rng.integers(0, 256, (40, 33, 3), dtype=np.uint8)
    tiffs = (
        {},
        {"compression": "zlib", "rowsperstrip": 7},
        {"compression": "zlib", "tile": (16, 16)},
        {"photometric": "minisblack"},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"metadata": None},
    )
    contents: list[tuple[bytes, Callable[[Path], object]]] = []
    for options in tiffs:
        tifffile.imwrite(folder / "a.tiff", xyz, **{"photometric": "rgb", **options})
        contents.append(((folder / "a.tiff").read_bytes(), read_xyz_tiff))
    depth = rng.integers(0, 2**16, (40, 33), dtype=np.uint16)
    pngs = (
        (Image.fromarray(rgb), read_rgb_png),
        (Image.fromarray(rgb).convert("P"), read_rgb_png),
        (Image.fromarray(rgb[..., 0]), read_mask_png),
        (Image.fromarray(rgb).convert("RGBA"), image_size),
        (Image.fromarray(depth), read_depth_png),
    )
    for image, reader in pngs:
        image.save(folder / "a.png")
        contents.append(((folder / "a.png").read_bytes(), reader))
    return contents


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        # Headers and directories, at both ends, more often than pixels.
        near = int(rng.integers(min(len(data), 400)))
        at = [near, len(data) - 1 - near, int(rng.integers(len(data)))][int(rng.integers(3))]
        match int(rng.integers(6)):
            case 0:
                data[at] ^= int(rng.integers(1, 256))
            case 1:
                order = "little" if rng.random() < 0.5 else "big"
                data[at : at + 4] = WORDS[int(rng.integers(len(WORDS)))].to_bytes(4, order)
            case 2:
                data[at:] = b""
            case 3:
                data[at : at + 16] = bytes(16)
            case 4:
                data[at:at] = data[near : near + 64]
            case 5:
                data[at : at + 2] = int(rng.integers(300)).to_bytes(2, "little")
        if not data:
            break
    return bytes(data)


def run(count: int, seed: int) -> Iterator[Outcome]:
    """What became of `count` damaged files."""
    with tempfile.TemporaryDirectory(prefix="hostile-files-") as folder:
        yield from run_guarded(
            reader_of_files,
            (Path(folder), seed),
            range(count),
            limit_s=LIMIT_S,
            limit_mib=LIMIT_MIB,
        )


def reader_of_files(folder: Path, seed: int) -> Work:
    """Reads the damaged file of a number."""
    contents = write_files(folder)
    path = folder / "damaged"

    def work(case: int) -> Outcome:
        content, reader = contents[case % len(contents)]
        path.write_bytes(damaged(np.random.default_rng([seed, case]), content))
        return outcome_of(reader, path)._replace(case=f"{case}: {reader.__name__}")

    return work


def outcome_of(reader: Callable[[Path], object], path: Path) -> Outcome:
    try:
        reader(path)
    except DataError as error:
        if path.name in str(error):
            return Outcome(REFUSAL)
        return Outcome(WRONG_EXCEPTION, what=f"without the file's name: {error}")
    except Exception as error:
        return Outcome(WRONG_EXCEPTION, what=f"{type(error).__name__}: {error}")
    return Outcome(ANSWER)
