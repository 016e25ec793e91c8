"""bench/ is no package: its scripts import what lies beside them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="session")
def bench_module() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script by "folder/stem"; afterwards neither path nor module is left."""
    path, modules = list(sys.path), set(sys.modules)

    def load(name: str) -> ModuleType:
        folder, stem = name.split("/")
        sys.path.insert(0, str(BENCH / folder))
        return import_module(stem)

    yield load
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
