"""bench/fuzz.py: every attack has its row, whatever becomes of it, and the exit code says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import fuzz
import pytest
from pages import load_pages
from rendering import robustness
from robustness.attack import ANSWER, FAULTS, REFUSAL, Outcome
from settings import read_toml

FAKES = """
import os, signal, time
from robustness.attack import ANSWER, HANG, Outcome

def run(count, seed):
    for case in range(count):
        kind = HANG if MARK == "faulty" and case == 1 else ANSWER
        if case == 2 and MARK == "fails":
            raise KeyError("a slip")
        if case == 2 and MARK == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if case == 2 and MARK == "waits":
            print("waiting", flush=True)
            time.sleep(60)
        yield Outcome(kind, str(case), seconds=case, peak_mib=1e5 + case, figures={"a_mib": case})
"""
MARKS = ("fine", "faulty", "fails", "crashes", "waits")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for mark in MARKS:
        (tmp_path / f"attack_that_{mark}.py").write_text(FAKES.replace("MARK", repr(mark)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tables = (
        f'[{mark}]\ntitle = "{mark}"\nmodule = "attack_that_{mark}"\ncount = 400' for mark in MARKS
    )
    (tmp_path / "fuzz.toml").write_text("\n".join(tables))
    return tmp_path / "fuzz.toml"


def rows(settings: Path) -> dict[str, dict]:
    lines = (settings.parent / "rows.jsonl").read_text().splitlines()
    found = {row["attack"]: row for row in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def arguments(settings: Path, *names: str) -> list[str]:
    files = ["--settings", settings, "--results", settings.parent / "rows.jsonl"]
    return [*names, "--scale", "0.01", "--seed", "5", *map(str, files)]


@pytest.mark.own_process
def test_an_attack_that_fails_does_not_stop_the_others(settings: Path) -> None:
    assert fuzz.main(arguments(settings, "crashes", "fails", "faulty", "fine")) == 1
    found = rows(settings)
    assert list(found) == ["crashes", "fails", "faulty", "fine"]
    assert found["crashes"]["failure"] == "the attack's process ended with exit code -11"
    assert found["fails"]["failure"] == "the attack failed: KeyError: 'a slip'"
    assert (found["fails"]["count"], found["fails"]["is_complete"]) == (2, False)
    faulty = found["faulty"]
    assert faulty["outcomes"] == {"answer": 3, "hang": 1}
    assert (faulty["faults"], faulty["is_complete"], faulty["failure"]) == (1, True, None)
    assert faulty["examples"] == [{"kind": "hang", "case": "1", "what": ""}]
    fine = found["fine"]
    assert (fine["count"], fine["wanted"], fine["seed"], fine["faults"]) == (4, 4, 5, 0)
    assert (fine["slowest_s"], fine["slowest_case"], fine["peak_mib"]) == (3, "3", 100_003)
    assert fine["figures"] == {"a_mib": 3}
    assert fine["environment"]["mmad_fast"]


@pytest.mark.own_process
def test_without_faults_the_exit_code_is_0(settings: Path) -> None:
    assert fuzz.main(arguments(settings, "fine")) == 0


@pytest.mark.own_process
@pytest.mark.parametrize(
    ("number", "first"),
    [(signal.SIGINT, ""), (signal.SIGTERM, ""), (signal.SIGTERM, "trap '' INT; ")],
    ids=["INT", "TERM", "TERM in the background"],
)
def test_an_interrupted_run_keeps_its_rows(settings: Path, number: int, first: str) -> None:
    command = [sys.executable, fuzz.__file__, *arguments(settings, "fine", "waits", "faulty")]
    process = subprocess.Popen(
        ["sh", "-c", f'{first}exec "$@"', "sh", *command],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        # Where these tests run in the background SIGINT is ignored, and would be by this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "waiting\n":
            break
    start = time.monotonic()
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 130
    assert time.monotonic() - start < 30
    found = rows(settings)
    assert list(found) == ["fine", "waits"]
    assert found["fine"]["is_complete"]
    assert (found["waits"]["count"], found["waits"]["failure"]) == (2, "interrupted")


def test_full_counts_are_for_the_page_and_others_are_not(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(fuzz, "run_apart", lambda attack, settings: asked.append(attack) or 0)
    assert fuzz.main([]) == fuzz.main(["soak", "--count", "60"]) == 0
    assert fuzz.main(["--scale", "0.001", "hostile_scans"]) == 0
    specs = read_toml(fuzz.SETTINGS)
    *full, soak, tenth = asked
    assert {attack.name: attack.count for attack in full} == {
        name: spec["count"] for name, spec in specs.items()
    }
    assert {attack.results for attack in full} == {fuzz.FULL_RESULTS}
    assert (soak.count, soak.results) == (60, fuzz.OTHER_RESULTS)
    assert (tenth.count, tenth.results) == (100, fuzz.OTHER_RESULTS)


@pytest.mark.parametrize("words", [["nope"], ["--scale", "0"], ["--count", "0"], ["--seed", "-1"]])
def test_what_cannot_be_run_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        fuzz.main(words)
    assert refused.value.code == 2


def test_every_attack_of_the_settings_is_there() -> None:
    for spec in read_toml(fuzz.SETTINGS).values():
        assert callable(import_module(spec["module"]).run)
        assert spec["count"] >= 1
        assert spec["title"]


def row(**changes: object) -> dict:
    spec = {"title": "hostile scans", "module": "", "count": 3}
    attack = fuzz.Attack("hostile_scans", spec, 3, 0, Path())
    one = fuzz.AttackRow(attack)
    one.add(Outcome(ANSWER))
    one.add(Outcome(REFUSAL, seconds=2.0, peak_mib=90_000.4))
    one.is_complete = True
    return {**one.to_dict(), **changes}


def test_the_page_counts_what_was_looked_for(monkeypatch) -> None:
    page = load_pages()["robustness"]
    for rows, *shown in (
        ([row()], "| hostile scans | 2 | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | – | – | – | 0 |"),
        ([row()], "| 0.0 | 2.00 | 90000 |"),
        ([row(is_complete=False, failure="interrupted")], "| 2, not complete |", "interrupted"),
        ([row(faults=3, examples=[{"kind": "hang", "case": "7: a|b", "what": "late\nnow"}])],
         "## Faults", "hostile scans: hang, case 7: a\\|b: late now", "hostile scans: 2 more"),
        ([row(figures={"resident_mib_end": 12.345})], "| resident mib end | 12.35 |"),
        ([row(), row(count=7)], "| hostile scans | 7 |"),
    ):  # fmt: skip
        monkeypatch.setattr(robustness, "rows_of", lambda page, rows=rows: rows)
        text = robustness.render(page)
        assert [words for words in shown if words not in text] == []
        assert ("## Faults" in text) == bool(rows[0]["examples"] or rows[0]["failure"])


def test_every_fault_has_a_column_and_is_looked_for_by_name() -> None:
    assert tuple(load_pages()["robustness"]["faults"]) == FAULTS
    for spec in read_toml(fuzz.SETTINGS).values():
        assert spec["looks_for"]
        assert set(spec["looks_for"]) <= set(FAULTS)
        assert spec["what"]
