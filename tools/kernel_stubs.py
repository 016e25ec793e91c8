"""Writes mmad_fast/_kernels.pyi: the names and types of the compiled kernels, read from the module.

    python tools/kernel_stubs.py

With --check it changes nothing and fails where the file is not what the module says.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mypy import stubgen

from mmad_fast.measure.generated_pages import write_pages

ROOT = Path(__file__).parents[1]
STUBS = ROOT / "mmad_fast" / "_kernels.pyi"
NO_CONSTRUCTOR = "    def __init__(self, *args, **kwargs) -> None: ...\n"
"""What stubgen writes for a class that Python cannot make."""


def render() -> dict[Path, str]:
    """The stubs as ruff formats them, by their file."""
    with TemporaryDirectory() as folder:
        stubgen.main(["-m", "mmad_fast._kernels", "--inspect-mode", "-q", "-o", folder])
        text = (Path(folder) / "mmad_fast" / "_kernels.pyi").read_text(encoding="utf-8")
    text = text.replace(NO_CONSTRUCTOR, "")
    for arguments in (["format", "--quiet"], ["check", "--select=I", "--fix", "--quiet"]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, f"--stdin-filename={STUBS}", "-"],
            input=text,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    return {STUBS: text}


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render))
