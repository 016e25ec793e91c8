"""Where mmad-fast keeps what it downloads and compiles."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The user's cache folder of mmad-fast: $MMAD_FAST_CACHE, else $XDG_CACHE_HOME/mmad-fast, else
    ~/.cache/mmad-fast. Not created here."""
    explicit = os.environ.get("MMAD_FAST_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    base = Path(xdg) if xdg else Path.home() / ".cache"
    return base / "mmad-fast"
