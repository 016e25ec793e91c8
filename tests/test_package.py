"""The package itself: what importing it costs, what it exports."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mmad_fast


def test_importing_it_imports_nothing_else() -> None:
    program = "import sys; import mmad_fast; print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", mmad_fast.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(mmad_fast, name) is not None
    assert name in dir(mmad_fast)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        mmad_fast.train  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert mmad_fast.__version__ == metadata.version("mmad-fast")


def test_types_and_lint_are_checked_for_the_oldest_python() -> None:
    settings = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    (oldest,) = re.findall(r'^requires-python = ">=3\.(\d+)"$', settings, re.MULTILINE)
    assert re.findall(r'^python_version = "3\.(\d+)"$', settings, re.MULTILINE) == [oldest]
    assert re.findall(r'^target-version = "py3(\d+)"$', settings, re.MULTILINE) == [oldest]
