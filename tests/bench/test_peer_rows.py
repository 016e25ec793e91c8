"""bench/run_ops.py: who is timed, who is a row with a reason, and when there are none."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest
import run_ops as rows
from ops.case import (
    FOLDER,
    Agreement,
    Case,
    Contender,
    DisagreementError,
    RefusalError,
    Work,
)
from settings import read_toml

from mmad_fast.errors import InvalidInputError


def compare(case, listed, options):
    rows.compare(replace(case, contenders=listed), options)


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        threads=2, runs=3, budget_s=1.0, resume=False, results=tmp_path / "new" / "peers.jsonl"
    )


@pytest.fixture
def case():
    def check(result):
        if result != 42:
            raise DisagreementError(f"{result} is not 42")
        return Agreement("same number", "exactly")

    return Case("op", {"N": 5}, [], data="noise", work=Work(plain_flop=2e6), check=check)


def written(options):
    return [json.loads(line) for line in options.results.read_text().splitlines()]


def contender(name, result=42, error=None, **changes):
    def make():
        if error is not None:
            raise error
        return lambda: result

    return Contender(name, make, **changes)


def test_every_contender_is_a_row_and_only_those_that_agree_are_timed(options, case):
    refusal = RefusalError("too large")
    listed = [
        contender("mmad-fast", is_ours=True),
        contender("peer", parameter="h=3", note="n"),
        contender("wrong", result=41),
        contender("absent", error=ModuleNotFoundError("No module named 'absent'")),
        contender("large", error=refusal),
        contender("bound", result=None, part="writes only"),
    ]
    compare(case, listed, options)
    by_name = {row["backend"]: row for row in written(options)}
    assert list(by_name) == ["mmad-fast", "peer", "wrong", "absent", "large", "bound"]
    assert [row["runs"] for row in by_name.values()] == [3, 3, 0, 0, 0, 3]
    assert len({row["case"] for row in by_name.values()}) == 1
    peer = by_name["peer"]
    assert (peer["agreement"], peer["detail"]) == ("same number", "exactly")
    assert (peer["parameter"], peer["note"], peer["refusal"]) == ("h=3", "n", None)
    assert 0 < peer["min_ms"] <= peer["p50_ms"]
    assert peer["gflops"] == pytest.approx(2 / peer["p50_ms"])
    assert peer["environment"]["versions"]["numpy"]
    wrong = by_name["wrong"]
    assert (wrong["refusal"], wrong["detail"]) == ("another result", "41 is not 42")
    assert wrong["p50_ms"] is wrong["min_ms"] is wrong["gflops"] is None
    assert by_name["absent"]["refusal"] == "No module named 'absent'"
    assert by_name["large"]["refusal"] == "too large"
    assert by_name["bound"]["agreement"] is None
    assert by_name["bound"]["part"] == "writes only"


def test_without_a_peer_that_confirms_ours_nothing_is_timed(options, case):
    listed = [
        contender("mmad-fast", is_ours=True),
        contender("wrong", result=41),
        contender("bound", part="writes only"),
    ]
    with pytest.raises(SystemExit, match="no peer confirms our result") as caught:
        compare(case, listed, options)
    assert "wrong: another result: 41 is not 42" in str(caught.value)
    assert not options.results.exists()


def test_ours_has_no_excuse(options, case):
    peer = contender("peer")
    with pytest.raises(SystemExit, match="41 is not 42; no timing"):
        compare(case, [contender("mmad-fast", result=41, is_ours=True), peer], options)
    error = InvalidInputError("points are missing")
    with pytest.raises(InvalidInputError, match="points are missing"):
        compare(case, [contender("mmad-fast", error=error, is_ours=True), peer], options)


def test_the_slow_get_the_runs_that_their_budget_allows(options, case, monkeypatch):
    listed = [contender("mmad-fast", is_ours=True)]
    listed += [contender("slow"), contender("few", max_runs=1)]
    seconds = iter([0.0, 0.001, 0.0, 0.001, 0.0, 0.5, 0.0, 0.001, 0.0, 0.001])
    monkeypatch.setattr(rows.time, "perf_counter", lambda: next(seconds, 0.0))
    counts = {}

    def timed(functions, *, num_runs):
        counts.update(num_runs)
        return {name: [1.0] * count for name, count in num_runs.items()}

    monkeypatch.setattr(rows, "time_interleaved", timed)
    compare(case, listed, options)
    assert counts == {"mmad-fast": 3, "slow": 2, "few": 1}


def test_resume_skips_what_the_same_code_has_measured(options, case, monkeypatch):
    listed = [contender("mmad-fast", is_ours=True), contender("peer")]
    facts = {"commit": "a", "versions": {}}
    monkeypatch.setattr(rows, "peer_environment", lambda: dict(facts))
    compare(case, listed, options)
    options.resume = True
    compare(case, listed, options)
    assert len(written(options)) == 2
    facts["commit"] = "b"
    compare(case, listed, options)
    assert len(written(options)) == 4
    options.threads = 1
    compare(case, listed, options)
    assert len(written(options)) == 6


def test_all_libraries_get_the_same_threads_by_starting_anew(monkeypatch):
    started = {}

    def execve(program, arguments, environment):
        started.update(environment)

    monkeypatch.setattr(rows.os, "execve", execve)
    for name, value in rows.library_environment(2).items():
        monkeypatch.setenv(name, value)
    rows.restart_with_threads(2)
    assert started == {}
    monkeypatch.setenv("KEPT", "1")
    rows.restart_with_threads(3)
    assert {started[name] for name in rows.THREAD_VARIABLES} == {"3"}
    assert started["KEPT"] == "1"


@pytest.mark.parametrize(
    ("instruction_set", "core"), [("AVX512", "SkylakeX"), ("AVX2", "Haswell"), ("BASELINE", None)]
)
def test_openblas_is_told_what_the_cpu_has(monkeypatch, instruction_set, core):
    found = argparse.Namespace(name=instruction_set)
    monkeypatch.setattr(rows._kernels, "best_instruction_set", lambda: found)
    assert rows.library_environment(2).get("OPENBLAS_CORETYPE") == core


def test_pieces_are_commands_and_real_features_only_where_given():
    def pieces(*arguments):
        return rows.commands(rows.parse_arguments(list(arguments)), arguments)

    plain = pieces("--resume", "--runs", "3")
    assert all("--resume" in command and "--only" in command for command in plain)
    assert all(command[command.index("--runs") + 1] == "3" for command in plain)
    assert not any("features" in command[5] for command in plain)
    given = {command[5] for command in pieces("--features=folder")}
    assert given - {command[5] for command in plain} == {
        "features-small",
        "features-large",
        "features-growth",
    }
    assert {command[3] for command in pieces("--op", "knn_grouping")} == {"knn_grouping"}


def test_what_is_said_of_contenders_is_of_some_that_there_are():
    """A name that is written otherwise in the table would lose its note without a word."""
    table = read_toml(FOLDER / "contenders.toml")
    texts = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob("bench_*.py")}
    for op, names in table.items():
        (text,) = {t for t in texts.values() if f'contenders("{op}", ' in t or f'OP = "{op}"' in t}
        for name in names:
            assert f'"{name}": ' in text, (op, name)
