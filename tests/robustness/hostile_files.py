"""Damaged PNG and TIFF files through every reader, in one process.

    python tests/robustness/hostile_files.py --count 2000 --seed 0

prints a JSON line with what came of them. Right are an image or a DataError; a crash ends the
process: the caller looks for it.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
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

MEMORY_LIMIT = 8 << 30
SECONDS_PER_FILE = 20
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


def outcome_of(reader: Callable[[Path], object], path: Path) -> str:
    try:
        reader(path)
    except DataError as error:
        return "refused" if path.name in str(error) else "refused without the file's name"
    except Exception as error:
        traceback.print_exc(limit=-3)
        return type(error).__name__
    return "read"


def out_of_time(_number: int, _frame: object) -> None:
    raise TimeoutError("a file took too long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    signal.signal(signal.SIGALRM, out_of_time)
    rng = np.random.default_rng(options.seed)
    counts: Counter[str] = Counter()
    slowest_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        contents = write_files(Path(folder))
        path = Path(folder) / "damaged"
        for number in range(options.count):
            content, reader = contents[number % len(contents)]
            path.write_bytes(damaged(rng, content))
            signal.alarm(SECONDS_PER_FILE)
            start = time.perf_counter()
            outcome = outcome_of(reader, path)
            signal.alarm(0)
            slowest_s = max(slowest_s, time.perf_counter() - start)
            if outcome not in ("read", "refused"):
                outcome = f"{reader.__name__}: {outcome}"
                print(f"file {number} of seed {options.seed}: {outcome}", file=sys.stderr)
            counts[outcome] += 1
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"counts": counts, "slowest_s": slowest_s, "peak_mib": peak_mib}))


if __name__ == "__main__":
    main()
