"""The procedural set of a bench without --data, in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmad_fast
from mmad_fast.cache_folder import cache_root
from mmad_fast.data.synthetic import CATEGORIES, write_synthetic
from mmad_fast.errors import DataError

BUILT_IN: dict[str, Any] = {
    "categories": CATEGORIES[:1],
    "num_train": 8,
    "num_validation": 2,
    "num_good": 4,
    "num_per_defect": 2,
    "size": 256,
    "seed": 0,
}
"""What fits, with its fit, into minutes on two cores."""
NAME = "procedural"


def built_in_set(progress: Callable[[int, int], None] | None = None) -> Path:
    """The set's folder, made at the first use, and anew where its content would be another.

    Args:
        progress: Called with (scans written, scans in total).

    Raises:
        DataError: the set cannot be written.
    """
    content = json.dumps([mmad_fast.__version__, BUILT_IN], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    folder = cache_root() / "data" / digest / NAME
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synthetic(folder, progress=progress, **BUILT_IN)
        except (OSError, DataError):
            if not folder.is_dir():  # else another process was first; the set appears whole
                raise
    return folder
