"""What people expect of a repository: types, hooks and forms that do not go stale."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_type_checkers_read_the_types() -> None:
    assert (resources.files("mmad_fast") / "py.typed").is_file()


def test_the_hooks_run_what_continuous_integration_runs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    steps = re.findall(r"^make (.*)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert steps[-1] == "test"
    assert re.findall(r"^ +entry: make (.*)$", hooks, re.MULTILINE) == steps[:-1]


@pytest.mark.parametrize("tool", ["kernel_stubs", "api_page"])
def test_what_is_generated_is_up_to_date(tool: str) -> None:
    command = [sys.executable, ROOT / "tools" / f"{tool}.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert f"tools/{tool}.py --check" in (ROOT / "Makefile").read_text("utf-8")


def test_the_forms_name_commands_that_there_are() -> None:
    text = "".join(template.read_text("utf-8") for template in TEMPLATES)
    commands = set(re.findall(r"mmad-fast (\w+)( --json)?", text))
    assert commands == {
        ("doctor", " --json"),
        ("eval", " --json"),
        ("infer", " --json"),
        ("fit", ""),
    }
    for verb, option in commands:
        command = [sys.executable, "-c", "from mmad_fast.cli import main; main()", verb, "--help"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0
        assert option.strip() in done.stdout
