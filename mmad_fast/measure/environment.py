"""On what and with what a measurement was made. No host name, user name or path."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import mmad_fast
from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.processor import cpu_model

PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "scikit-learn", "scipy", "pillow")
_GIT_TIMEOUT_S = 5.0


def environment() -> dict[str, Any]:
    """The machine, the software and the date of a measurement, as JSON types.

    Returns:
        cpu (model), machine (architecture), cores (of the machine), usable_cores (of this process),
        memory_mib, os, python, versions (per installed package), mmad_fast, commit and
        commit_is_clean (None unless the package runs from a checkout), date (ISO 8601, UTC).
        A value that cannot be known here is None.
    """
    commit, is_clean = _commit()
    return {
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "memory_mib": _memory_mib(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "mmad_fast": mmad_fast.__version__,
        "commit": commit,
        "commit_is_clean": is_clean,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _usable_cores() -> int | None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if allowed is None or kernels_refusal() is not None:
        return allowed
    from mmad_fast import _kernels

    return min(allowed, _kernels.cgroup_cores("") or allowed)


def _memory_mib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _versions() -> dict[str, str]:
    """Version per installed package, read from its metadata: nothing is imported."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> tuple[str | None, bool | None]:
    """The commit of the checkout that tracks this package, and whether its files are unchanged."""
    package = Path(mmad_fast.__file__).parent
    # An installed package may lie inside somebody's checkout: only a tracked one counts.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ":/")
    return commit, None if changes is None else not changes


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None if there is no git, no repository, or it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
