"""Measures what an installation takes: download, disk by package, and importing it.

python bench/install_size.py [--variants NAME ...] [--results bench/results/install_size.jsonl]

Builds the wheel of this checkout without CUDA kernels and installs it into a fresh virtual
environment per variant, under the tested pins; it needs the package index. A variant that brings
torch or anything else of the fit half is an error. Adds one JSON line per variant to the results;
then `python bench/pages.py install_size` writes README's table.

Sizes are in MB of 10^6 bytes. Disk is what `du` counts: whole blocks, compiled Python files
included; the environment has no pip or setuptools of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from typing import Any

from settings import BENCH, RESULTS, ROOT, append_rows, read_toml

from mmad_fast.measure.environment import environment

MB = 1e6
RUNS = 7
"""Processes that import; the first warms the disk cache up and does not count."""
FIT_HALF = frozenset(
    ("torch", "triton", "timm", "onnx", "onnxscript", "scikit-learn", "sklearn", "scipy", "open3d")
)


VARIANTS = read_toml(BENCH / "sweeps" / "install_size.toml")

# Resident memory as Linux counts its peak, and wall time, of one statement in a fresh process.
_IMPORT = """
import re, sys, time
def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, start = peak_mib(), time.perf_counter()
{statement}
seconds = time.perf_counter() - start
found = {fit_half!r} & set(sys.modules)
assert not found, found
print(seconds * 1e3, peak_mib() - before)
"""


class UnwantedPackageError(Exception):
    """An installation of the run half holds a package of the fit half."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--results", type=Path, default=RESULTS / "install_size.jsonl")
    options = parser.parse_args()
    facts = environment()  # before the results change the checkout
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build_wheel(Path(scratch, "wheel"))
        for name in options.variants:
            row = measure(name, VARIANTS[name], wheel, Path(scratch, name.replace(" ", "-")))
            append_rows(options.results, [row | {"environment": facts | row["environment"]}])
            print(f"{name}: {row['disk_mb']:.0f} MB", flush=True)


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, with the kernels of the CPU only."""
    _pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("mmad_fast-*.whl")
    return wheel


def measure(name: str, variant: Mapping[str, Any], wheel: Path, folder: Path) -> dict[str, Any]:
    """The row of a variant, installed into a folder that is not there yet; of its environment it
    has the versions only."""
    pins = ("--constraint", ROOT / "constraints.txt")
    extras = f"[{','.join(variant['extras'])}]" if variant["extras"] else ""
    requirement = f"mmad-fast{extras} @ {wheel.as_uri()}"
    _pip("download", "--dest", folder / "download", *pins, requirement)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    _pip("--python", python, "install", *pins, requirement)
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    packages, versions = package_sizes(site_packages)
    refuse_fit_half(versions)
    statement = f"import mmad_fast; mmad_fast.load; import {variant['engine']}"
    import_ms, import_mib = import_cost(python, "import mmad_fast")
    ready_ms, ready_mib = import_cost(python, statement)
    return {
        "what": "install size",
        "variant": name,
        "extras": variant["extras"],
        "wheel": wheel.name,
        "download_mb": sum(f.stat().st_size for f in (folder / "download").iterdir()) / MB,
        "disk_mb": disk_bytes([site_packages, *site_packages.rglob("*")]) / MB,
        "packages_mb": {package: size / MB for package, size in packages.items()},
        "import_ms": import_ms,
        "import_mib": import_mib,
        "engine": variant["engine"],
        "engine_import_ms": ready_ms,
        "engine_import_mib": ready_mib,
        "runs": RUNS - 1,
        "environment": {"versions": versions},
    }


def _pip(*arguments: str | Path) -> None:
    """Runs pip; CMake is told to leave the CUDA kernels out."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*command, *map(str, arguments)], check=True, env={**os.environ, "MMAD_FAST_CUDA": "OFF"}
    )


def package_sizes(site_packages: Path) -> tuple[dict[str, int], dict[str, str]]:
    """(bytes on disk, version) per installed package, the largest first."""
    sizes, versions = {}, {}
    for distribution in distributions(path=[str(site_packages)]):
        name = distribution.metadata["Name"].lower().replace("_", "-")
        files = (Path(str(file.locate())) for file in distribution.files or ())
        sizes[name] = disk_bytes([file for file in files if file.is_file()])
        versions[name] = distribution.version
    largest_first = dict(sorted(sizes.items(), key=lambda item: -item[1]))
    return largest_first, {name: versions[name] for name in largest_first}


def disk_bytes(paths: Sequence[Path]) -> int:
    """Bytes of the blocks that files and folders take, each once."""
    stats = {stat.st_ino: stat.st_blocks for stat in (path.lstat() for path in paths)}
    return 512 * sum(stats.values())  # st_blocks counts 512 bytes on every file system


def refuse_fit_half(versions: Mapping[str, str]) -> None:
    """Raises where a package is of the fit half.

    Raises:
        UnwantedPackageError: with their names.
    """
    unwanted = sorted(FIT_HALF & versions.keys())
    if unwanted:
        raise UnwantedPackageError(
            f"{', '.join(unwanted)} came with the run half; find what requires it: pip show"
        )


def import_cost(python: Path, statement: str) -> tuple[float, float]:
    """Median (milliseconds, MiB of peak memory) that a statement takes in a process of its own.

    The interpreter's own start is left out; so is what the disk cache does not hold yet.
    """
    program = _IMPORT.format(statement=statement, fit_half=set(FIT_HALF))
    costs = []
    for _ in range(RUNS):
        done = subprocess.run(
            [python, "-I", "-c", program], capture_output=True, text=True, check=True, cwd="/"
        )
        costs.append([float(word) for word in done.stdout.split()])
    milliseconds, mib = zip(*costs[1:], strict=True)
    return median(milliseconds), median(mib)


if __name__ == "__main__":
    main()
