from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import mmad_fast
from mmad_fast.measure import environment as environment_module
from mmad_fast.measure.environment import environment


def test_what_is_recorded():
    record = environment()
    assert record["mmad_fast"] == mmad_fast.__version__
    assert record["python"] == platform.python_version()
    assert record["usable_cores"] >= 1
    assert record["versions"]["numpy"].count(".") >= 1
    age = datetime.now(timezone.utc) - datetime.fromisoformat(record["date"])
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_nothing_in_it_names_a_person_a_host_or_a_folder():
    text = json.dumps(environment())
    for secret in (str(Path.home()), str(Path.cwd()), platform.node(), os.environ.get("USER", "")):
        if len(secret) > 4:  # shorter ones are part of other words
            assert secret not in text


def test_it_does_not_import_the_fit_half():
    code = (
        "import sys; from mmad_fast.measure.environment import environment; environment(); "
        "print(sorted({'torch', 'sklearn', 'scipy', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_that_no_repository_tracks_has_no_commit(monkeypatch, tmp_path):
    (tmp_path / "mmad_fast").mkdir()
    (tmp_path / "mmad_fast" / "__init__.py").touch()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=False)  # untracked inside
    fake = type("Package", (), {"__file__": str(tmp_path / "mmad_fast" / "__init__.py")})
    monkeypatch.setattr(environment_module.mmad_fast, "__file__", fake.__file__)
    assert (environment()["commit"], environment()["commit_is_clean"]) == (None, None)


def test_the_commit_of_a_checkout_and_whether_it_is_clean(monkeypatch, tmp_path):
    package = tmp_path / "mmad_fast"
    package.mkdir()
    (package / "__init__.py").write_text("")

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("init", "-q")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no git here")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(environment_module.mmad_fast, "__file__", str(package / "__init__.py"))
    record = environment()
    assert record["commit"] == git("rev-parse", "HEAD")
    assert record["commit_is_clean"] is True
    (package / "__init__.py").write_text("changed = True\n")
    assert environment()["commit_is_clean"] is False
