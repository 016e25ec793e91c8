"""`infer`: every scan ends as a row, and what was decided reaches the reader whatever happens."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import Call
from cli.test_commands import write_scan

import mmad_fast.report.pictures
from mmad_fast.cli.interrupts import Interrupted, finish, interruptible, uninterrupted
from mmad_fast.cli.json_lines import json_lines
from mmad_fast.detector import Detector
from mmad_fast.errors import InvalidInputError

PROGRAM = "from mmad_fast.cli import main; main()"
UTF8 = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of the scans a, b, c, d."""
    folder = tmp_path / "scans"
    write_scan(folder, "a")
    for name in "bcd":
        link_scan(folder, name)
    return folder


def link_scan(folder: Path, name: str | bytes) -> None:
    """A scan of another name with the files of scan "a"."""
    for suffix in ("png", "tiff"):
        stem = os.fsdecode(name)
        os.link(folder / f"a.{suffix}", folder / f"{stem}.{suffix}")


@pytest.fixture
def at_scan(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Makes something happen when a scan is about to be scored."""

    def plan(name: str, act: Callable[[], object]) -> None:
        infer = Detector.infer_scan

        def infer_scan(self: Detector, scan: object) -> object:
            if getattr(scan, "name", "") == name:
                act()
            return infer(self, scan)

        monkeypatch.setattr(Detector, "infer_scan", infer_scan)

    return plan


def raiser(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


def start(*arguments: object, program: str = PROGRAM, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": UTF8, **options},
    )


def num_good(table: str) -> int:
    """The rows of a table whose decision is good."""
    return len(re.findall(r"[│|] good\b", table))


def names(text: str) -> list[str]:
    """The scans of JSON lines, each checked to be whole."""
    assert text.endswith("\n")
    return [json.loads(line)["scan"] for line in text.splitlines()]


@pytest.mark.parametrize(
    "error", [MemoryError("out"), RuntimeError("engine"), OSError("gone"), ImportError("codec")]
)
def test_whatever_one_scan_raises_is_its_row(
    tiny_artifact: Path, scans: Path, call: Call, at_scan: Callable, error: Exception
) -> None:
    at_scan("b", raiser(error))
    done = call("infer", tiny_artifact, scans, "--json")
    content = json.loads(done.stdout)
    assert done.returncode == 1
    assert ["error" in row for row in content["scans"]] == [False, True, False, False]
    assert str(error) in content["scans"][1]["error"]
    assert (content["interrupted"], content["not_reached"]) == (None, [])


def test_a_pair_without_partner_is_a_row(tiny_artifact: Path, scans: Path, call: Call) -> None:
    (scans / "b.tiff").unlink()
    (scans / "c.png").unlink()
    done = call("infer", tiny_artifact, scans, "--json")
    rows = json.loads(done.stdout)["scans"]
    assert ["error" in row for row in rows] == [False, True, True, False]
    assert "b.png: no file of the same name" in rows[1]["error"]
    assert "c.tiff: no file of the same name" in rows[2]["error"]
    assert done.returncode == 1


@pytest.mark.parametrize("failing", ["save_overlay", "save_map_tiff"])
def test_a_picture_that_cannot_be_written_does_not_cost_the_decision(
    tiny_artifact: Path,
    scans: Path,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    save = getattr(mmad_fast.report.pictures, failing)

    def refuse(path: Path, *arguments: object, **options: object) -> Path:
        if path.name.startswith("b_"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return Path(save(path, *arguments, **options))

    monkeypatch.setattr(mmad_fast.report.pictures, failing, refuse)
    done = call("infer", tiny_artifact, scans, "-o", tmp_path / "out", "--json")
    rows = json.loads(done.stdout)["scans"]
    assert [row["is_anomalous"] for row in rows] == [False] * 4
    assert ["picture_error" in row for row in rows] == [False, True, False, False]
    assert "No space left on device; make room" in rows[1]["picture_error"]
    assert ("overlay" in rows[1]) == (failing == "save_map_tiff")
    assert done.returncode == 1
    assert "1 of 4 scans lack a picture" in done.stderr
    table = call("infer", tiny_artifact, scans, "-o", tmp_path / "out").stdout
    assert "good (no picture:" in table


def test_names_that_look_alike_have_pictures_of_their_own(
    tiny_artifact: Path, tmp_path: Path, call: Call
) -> None:
    for defect, name in (("a", "b_000"), ("a_b", "000"), ("A", "b_000"), ("x" * 200, "y" * 50)):
        rgb = write_scan(tmp_path / "pairs", name)
        for kind, suffix in (("rgb", ".png"), ("xyz", ".tiff")):
            folder = tmp_path / "set" / "part" / "test" / defect / kind
            folder.mkdir(parents=True)
            rgb.with_suffix(suffix).rename(folder / f"{name}{suffix}")
    done = call("infer", tiny_artifact, tmp_path / "set", "-o", tmp_path / "out", "--json")
    rows = json.loads(done.stdout)["scans"]
    assert done.returncode == 0, done.stderr
    files = {row[kind] for row in rows for kind in ("overlay", "anomaly_map")}
    assert len({file.casefold() for file in files}) == 8 == len(os.listdir(tmp_path / "out"))
    assert files == {str(path) for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("place", ["", "results", "test/results"])
def test_a_second_run_does_not_read_the_pictures_of_the_first(
    tiny_artifact: Path, tmp_path: Path, call: Call, place: str
) -> None:
    folder = tmp_path / "scans"
    rgb = write_scan(folder, "a")
    if place.startswith("test"):
        for kind, suffix in (("rgb", ".png"), ("xyz", ".tiff")):
            (folder / "test" / "good" / kind).mkdir(parents=True)
            rgb.with_suffix(suffix).rename(folder / "test" / "good" / kind / f"a{suffix}")
    runs = [call("infer", tiny_artifact, folder, "-o", folder / place, "--json") for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0]
    first, second = ([row["scan"] for row in json.loads(run.stdout)["scans"]] for run in runs)
    assert first == second
    assert len(first) == 1
    assert "pictures" not in runs[0].stderr
    assert "note: 2 pictures that infer wrote lie among the scans" in runs[1].stderr


def test_json_lines_are_the_rows_of_json(
    tiny_artifact: Path, scans: Path, tmp_path: Path, call: Call
) -> None:
    (scans / "c.tiff").unlink()
    file = tmp_path / "log" / "rows.jsonl"
    done = call("infer", tiny_artifact, scans, "--jsonl", file, "--json")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == json.loads(done.stdout)["scans"]
    assert [set(row) == {"scan", "error"} for row in rows] == [False, False, True, False]
    done = call("infer", tiny_artifact, scans, "--jsonl", "-")
    assert names(done.stdout) == ["a", "b", "c", "d"]
    assert done.returncode == 1
    call("infer", tiny_artifact, scans, "--jsonl", file)
    assert len(file.read_text().splitlines()) == 8, "lines are added"


def test_wrong_usage_of_json_lines(tiny_artifact: Path, scans: Path, call: Call) -> None:
    done = call("infer", tiny_artifact, scans, "--jsonl", "-", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "both write to stdout" in done.stderr
    done = call("infer", tiny_artifact, scans, "--jsonl", scans)
    assert done.returncode == 1
    assert "cannot be written (Is a directory); name a file" in done.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"scan": "a"}\n{"scan": "b", "ima', '{"scan": "a"}\n'),  # killed while it wrote
        ('{"scan": "a', ""),
        ('{"scan": "a"}', '{"scan": "a"}\n'),  # all but the line's end was written
        ('{"other": 1}', '{"other": 1}\n'),  # somebody else's file
        ("", ""),
    ],
)
def test_lines_are_added_behind_whole_lines(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(before)
    with json_lines(file) as lines:
        lines.write({"scan": "c"})
    assert file.read_text() == after + '{"scan": "c"}\n'


def test_lines_that_a_full_disk_refuses_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room = [9]  # bytes: the first line is 14 long
    with json_lines(tmp_path / "rows.jsonl") as lines:
        raw = lines.file  # type: ignore[attr-defined]

        class Full:
            def write(self, data: bytes) -> int:
                if not room[0]:
                    raise OSError(errno.ENOSPC, "No space left on device")
                count = min(len(data), room[0])
                room[0] -= count
                return int(raw.write(data[:count]))

            def __getattr__(self, name: str) -> object:
                return getattr(raw, name)

        lines.file = Full()  # type: ignore[attr-defined]
        lines.write({"scan": "a"})
        assert (tmp_path / "rows.jsonl").read_text() == "", "no part of a line stays"
        room[0] = 1000
        lines.write({"scan": "b"})
        assert names((tmp_path / "rows.jsonl").read_text()) == ["a", "b"]
        room[0] = 0
        lines.write({"scan": "c"})
    assert lines.is_refused
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert '\n{"scan": "c"}\n' in told


def test_a_file_of_lines_that_cannot_be_opened_is_refused_before_scoring(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be written"), json_lines(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_was_decided_is_printed_after_a_signal(
    tiny_artifact: Path,
    scans: Path,
    tmp_path: Path,
    call: Call,
    at_scan: Callable,
    number: signal.Signals,
    code: int,
    options: tuple[str, ...],
) -> None:
    at_scan("c", lambda: os.kill(os.getpid(), number))
    file = tmp_path / "rows.jsonl"
    done = call("infer", tiny_artifact, scans, "--jsonl", file, *options)
    assert done.returncode == code
    assert names(file.read_text()) == ["a", "b", "c"]
    assert f"interrupted by {number.name}: 1 of 4 scans were not reached" in done.stderr
    if options:
        content = json.loads(done.stdout)
        assert [row["scan"] for row in content["scans"]] == ["a", "b", "c"]
        assert (content["interrupted"], content["not_reached"]) == (number.name, ["d"])
    else:
        assert num_good(done.stdout) == 3


@pytest.mark.parametrize(("first", "code"), [(signal.SIGINT, 130), (None, 0)], ids=["INT", "none"])
def test_signals_wait_until_the_rows_are_printed(
    tiny_artifact: Path,
    scans: Path,
    call: Call,
    at_scan: Callable,
    monkeypatch: pytest.MonkeyPatch,
    first: signal.Signals | None,
    code: int,
) -> None:
    import mmad_fast.cli.infer as command

    print_json = command.print_json

    def print_twice_interrupted(content: dict) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        print_json(content)

    if first is not None:
        at_scan("c", lambda: os.kill(os.getpid(), first))
    monkeypatch.setattr(command, "print_json", print_twice_interrupted)
    done = call("infer", tiny_artifact, scans, "--json")
    assert done.returncode == code
    assert len(json.loads(done.stdout)["scans"]) == (4 if first is None else 3)


def test_a_signal_while_the_lines_are_closed_costs_no_row(
    tiny_artifact: Path,
    scans: Path,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mmad_fast.cli import json_lines as module

    close = module._File.close

    def close_interrupted(lines: module._File) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        close(lines)

    monkeypatch.setattr(module._File, "close", close_interrupted)
    done = call("infer", tiny_artifact, scans, "--jsonl", tmp_path / "rows.jsonl")
    assert (done.returncode, num_good(done.stdout)) == (143, 4)
    assert "interrupted by SIGTERM: 0 of 4 scans were not reached" in done.stderr


def test_a_signal_after_all_is_printed_changes_nothing(
    tiny_artifact: Path, scans: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish_late() -> None:
        finish()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("mmad_fast.cli.infer.finish", finish_late)
    done = call("infer", tiny_artifact, scans, "--json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["scans"]) == 4  # one object, and no error behind it


def test_who_insists_is_not_kept_waiting() -> None:
    reached: list[signal.Signals] = []

    def write_while_signals_come() -> None:
        with interruptible(), uninterrupted():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
                reached.append(number)

    with pytest.raises(Interrupted) as caught:
        write_while_signals_come()
    assert (reached, caught.value.exit_code) == ([signal.SIGINT], 143)
    with interruptible(), uninterrupted():
        pass  # nothing is left waiting


@pytest.mark.parametrize("verb", ["eval", "fit", "bench"])
def test_other_commands_say_how_far_they_came(
    tiny_artifact: Path,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    def work(
        *arguments: object, progress: Callable[[str, int, int], None], **named: object
    ) -> None:
        progress("evaluate", 2, 7)
        os.kill(os.getpid(), signal.SIGTERM)

    for target in (
        "mmad_fast.measure.detector_row.measure_artifact",
        "mmad_fast.methods.fit_run.fit_detector",
        "mmad_fast.measure.benchmark.run_benchmark",
    ):
        monkeypatch.setattr(target, work)
    write_scan(tmp_path / "data", "a")
    arguments = {
        "eval": (tiny_artifact, "--data", tmp_path / "data"),
        "fit": (tmp_path / "data", "--output", tmp_path / "new"),
        "bench": (),
    }[verb]
    done = call(verb, *arguments, "--json")
    assert done.returncode == 143
    assert f"interrupted by SIGTERM during {verb}: evaluate, 2 of 7 done" in done.stderr
    content = json.loads(done.stdout)
    if verb == "bench":
        assert (content["rows"], "SIGTERM" in content["interrupted"]) == ([], True)
    else:
        assert content["error"]["type"] == "Interrupted"


@pytest.mark.parametrize("arguments", [("--jsonl", "-"), ()])
def test_a_reader_that_closes_stdout_ends_the_command_quietly(
    tiny_artifact: Path, scans: Path, arguments: tuple[str, ...]
) -> None:
    for index in range(400 if arguments else 0):
        link_scan(scans, f"e{index:03d}")
    process = start("infer", tiny_artifact, scans, *arguments)
    assert process.stdout is not None
    assert process.stderr is not None
    if arguments:
        assert names(process.stdout.readline()) == ["a"]
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert told.strip() == ""


def test_rows_that_stdout_refuses_go_to_stderr(tiny_artifact: Path, scans: Path) -> None:
    for options in ((), ("--jsonl", "-")):
        with open("/dev/full", "w", encoding="utf-8") as full:
            process = start("infer", tiny_artifact, scans, *options, stdout=full)
        _, told = process.communicate()
        assert process.returncode == 1
        assert "error: stdout: No space left on device; make room" in told
        lines = [line for line in told.splitlines(keepends=True) if line.startswith("{")]
        assert names("".join(lines)) == ["a", "b", "c", "d"]
        assert "Exception ignored" not in told


def test_names_that_stdout_cannot_say_are_escaped(
    tiny_artifact: Path, scans: Path, tmp_path: Path, call: Call
) -> None:
    for name in ("деталь", b"caf\xe9", "two\nlines"):
        link_scan(scans, name)
    ascii_alone = {**UTF8, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    process = start("infer", tiny_artifact, scans, "-o", tmp_path / "out", env=ascii_alone)
    printed, told = process.communicate()
    assert process.returncode == 0, told
    for name in ("\\u0434\\u0435\\u0442\\u0430\\u043b\\u044c", "caf\\udce9", "two\\nlines"):
        assert name in printed
    assert num_good(printed) == 7
    done = call("infer", tiny_artifact, scans, "-o", tmp_path / "out", "--json")
    rows = json.loads(done.stdout)["scans"]
    assert {"деталь", "caf\\udce9", "two\nlines"} < {row["scan"] for row in rows}
    assert len({row["overlay"] for row in rows}) == 7


def test_lines_of_a_killed_process_are_whole(
    tiny_artifact: Path, scans: Path, tmp_path: Path
) -> None:
    kill_at_c = (
        "import os, signal\n"
        "from mmad_fast.detector import Detector\n"
        "infer = Detector.infer_scan\n"
        "def infer_scan(self, scan):\n"
        "    if scan.name == 'c': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return infer(self, scan)\n"
        "Detector.infer_scan = infer_scan\n"
    )
    file = tmp_path / "rows.jsonl"
    arguments = ("infer", tiny_artifact, scans, "--jsonl", file)
    process = start(*arguments, program=kill_at_c + PROGRAM)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert names(file.read_text()) == ["a", "b"]


def test_a_signal_from_outside_ends_a_run_in_order(tiny_artifact: Path, scans: Path) -> None:
    for index in range(400):
        link_scan(scans, f"e{index:03d}")
    process = start("infer", tiny_artifact, scans, "--jsonl", "-")
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest, told = process.communicate()
    assert process.returncode == 143
    done = names(first + rest)
    assert done == ["a", "b", "c", "d", *(f"e{index:03d}" for index in range(400))][: len(done)]
    assert f"interrupted by SIGTERM: {404 - len(done)} of 404 scans were not reached" in told


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda artifact, folder: (artifact, folder / "nope"), "nope does not exist; give the PNG"),
        (lambda artifact, folder: (folder, artifact), "it is a detector artifact"),
        (lambda artifact, folder: (folder / "a.png", artifact), "infer ARTIFACT SCANS"),
        (lambda artifact, folder: (artifact, folder / "a.tiff"), "named as a file of points"),
        (lambda artifact, folder: (folder / "x.zip", folder), "x.zip: is an archive; unpack it"),
        (lambda artifact, folder: (artifact, folder / "x.zip"), "x.zip is an archive; unpack it"),
    ],
    ids=["absent", "swapped", "swapped-file", "points", "zipped-artifact", "zipped-scans"],
)
def test_what_infer_cannot_take_is_told(
    tiny_artifact: Path, scans: Path, call: Call, make: Callable, words: str
) -> None:
    (scans / "x.zip").touch()
    done = call("infer", *make(tiny_artifact, scans))
    assert done.returncode == 1
    assert words in done.stderr
    assert "data set" not in done.stderr.partition("a data set with test scans")[0]


def test_infer_reads_no_masks_and_eval_says_what_it_lacks(
    tiny_artifact: Path, tmp_path: Path, call: Call
) -> None:
    for defect in ("good", "scratch"):
        rgb = write_scan(tmp_path / "pairs", "000")
        for kind, suffix in (("rgb", ".png"), ("xyz", ".tiff")):
            folder = tmp_path / "set" / "part" / "test" / defect / kind
            folder.mkdir(parents=True)
            rgb.with_suffix(suffix).rename(folder / f"000{suffix}")
    done = call("infer", tiny_artifact, tmp_path / "set")
    assert (done.returncode, num_good(done.stdout)) == (0, 2), done.stderr
    done = call("eval", tiny_artifact, "--data", tmp_path / "set", "--json")
    (row,) = json.loads(done.stdout)["rows"]
    assert done.returncode == 0
    assert row["i_auroc"] == 0.5
    assert row["p_auroc"] is None
    assert "no P-AUROC and no AUPRO: no mask for 1 anomalous" in row["notes"][0]
    assert row["notes"][0] in done.stderr


def test_exit_codes_are_in_the_help(call: Call) -> None:
    for arguments in (("--help",), ("infer", "--help")):
        text = " ".join(call(*arguments).stdout.split())
        for words in (
            "Exit codes: 0",
            "2 wrong usage",
            "130 interrupted by Ctrl-C",
            "143 ended by",
        ):
            assert words in text


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--jsonl", "/dev/full"), 1)])
def test_a_log_on_a_full_disk_costs_no_row(
    tiny_artifact: Path, scans: Path, options: tuple[str, ...], code: int
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        process = start("infer", tiny_artifact, scans, *options, stderr=full)
    printed, _ = process.communicate()
    assert (process.returncode, num_good(printed)) == (code, 4)
