"""What may import what: the run half never reaches up into what fits, measures and shows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mmad_fast"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"_cuda_kernels", "_kernels", "errors"}),
    frozenset(
        {
            "cache_folder",
            "compiled_kernels",
            "engine_record",
            "folder_files",
            "heap",
            "manifest",
            "missing_values",
            "processor",
            "scratch_folder",
            "signature",
            "stage_clock",
            "threshold",
            "validation",
            "whole_folder",
        }
    ),
    frozenset({"threads"}),
    frozenset({"engines", "gpu", "ops", "preprocess", "scan"}),
    frozenset({"artifact", "data"}),
    frozenset(
        {"__init__", "backbones", "detector", "export", "golden_replays", "measure", "methods"}
    ),
    frozenset({"cli", "report"}),
)
"""The modules and packages right under mmad_fast, lowest first: each may import its own layer and
those below, at the top of a file and inside a function alike."""

LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """The first name below mmad_fast."""
    return [*module.split("."), "__init__"][1]


def imported_rooms(source: str) -> Iterator[tuple[int, str]]:
    """(line, room) of each import of mmad_fast; also of what a string names for import_module."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "mmad_fast":
            names = [f"mmad_fast.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [str(node.module)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if node.value.startswith("mmad_fast.") else []
        for name in names:
            room = room_of(name.partition(":")[0])
            if name.split(".")[0] == "mmad_fast" and " " not in name:
                # `from mmad_fast import load` is an import of the package itself.
                yield node.lineno, room if room in LEVEL else "__init__"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_a_file_imports_its_own_layer_and_those_below(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    reached = [
        f"{file.name}:{line} imports {other}"
        for line, other in imported_rooms(file.read_text("utf-8"))
        if LEVEL[other] > LEVEL[room]
    ]
    assert reached == []


def test_every_module_has_a_layer() -> None:
    rooms = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}
    assert rooms == set(LEVEL) - {"_cuda_kernels", "_kernels"}
    assert sum(map(len, LAYERS)) == len(LEVEL)


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("import mmad_fast.measure.timing as timing", "measure"),
        ("def late():\n    from mmad_fast.backbones.weights import official_file", "backbones"),
        ("from mmad_fast import cli", "cli"),
        ("from mmad_fast import load", "__init__"),
        ("MODULE = 'mmad_fast.methods.cfm.detector:CfmPipeline'", "methods"),
    ],
)
def test_imports_are_found(source: str, room: str) -> None:
    assert [found for _, found in imported_rooms(source)] == [room]
