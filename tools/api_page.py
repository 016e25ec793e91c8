"""Writes docs/api.md: the public names with their signatures, from the docstrings.

    python tools/api_page.py

With --check it changes nothing and fails where the page is not what the sources say.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import mmad_fast
from mmad_fast import errors
from mmad_fast.measure.generated_pages import write_pages
from mmad_fast.ops import STEMS

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = """# The public names

Made by `tools/api_page.py` from the docstrings. Axes by letter: N points, G groups, K neighbours,
C channels, H W image, S side of the anomaly map, P pixels, Q queries, M bank rows.
"""
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Source):\s*(.*)")
ENTRY = re.compile(r"(\w[\w*]*): (.*)")


def render() -> dict[Path, str]:
    """The page, by its file."""
    public = [getattr(mmad_fast, name) for name in mmad_fast.__all__ if name != "__version__"]
    parts = [HEAD, *_chapter("mmad_fast", public), *_chapter("mmad_fast.errors", _own(errors))]
    for stem in STEMS:
        op = import_module(f"mmad_fast.ops.{stem}")
        named = [getattr(op, name) for name in op.__all__]
        parts += _chapter(op.__name__, [one for one in named if inspect.isroutine(one)])
        parts += _entries([one for one in named if inspect.isclass(one)])
    return {PAGE: "\n".join(parts)}


def _own(module: ModuleType) -> list[Any]:
    """The classes that a module defines, in its order."""
    classes = [one for one in vars(module).values() if inspect.isclass(one)]
    return [one for one in classes if one.__module__ == module.__name__]


def _chapter(title: str, named: list[Any]) -> list[str]:
    return [f"## {title}\n", *_entries(named)]


def _entries(named: list[Any]) -> list[str]:
    return [line for one in named for line in _entry(one)]


def _entry(one: Any) -> Iterator[str]:
    """The paragraphs of a function, or of a class and its public members."""
    yield f"### {one.__name__}\n"
    if inspect.isclass(one):
        yield _markdown(one)
        for name, member in vars(one).items():
            if name.startswith("_") or not isinstance(
                member, (FunctionType, property, classmethod)
            ):
                continue
            function = member.fget if isinstance(member, property) else member
            yield f"#### {one.__name__}.{name}\n"
            if not isinstance(member, property):
                yield _signature(inspect.unwrap(getattr(one, name)))
            yield _markdown(function)
    else:
        yield _signature(one)
        yield _markdown(one)


def _signature(function: Any) -> str:
    """The head of a function as the source has it."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    definition.body = [ast.Expr(ast.Constant(...))]
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename=api.pyi", "-"]
    text = ast.unparse(definition)
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    return f"```python\n{done.stdout}```\n"


def _markdown(documented: Any) -> str:
    """The docstring: its sections as lists, one entry per item."""
    lines = []
    for line in (inspect.getdoc(documented) or "").splitlines():
        section, entry = SECTION.fullmatch(line), ENTRY.fullmatch(line.removeprefix("    "))
        if section:
            lines += [f"**{section[1]}**" + f" {section[2]}".rstrip(), ""]
        elif entry and line.startswith("    ") and not line.startswith("     "):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(line.strip())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(write_pages(__doc__, render))
