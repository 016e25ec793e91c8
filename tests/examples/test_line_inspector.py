"""examples/line_inspector.py: what it counts, writes and survives, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from conftest import FIT_HALF, make_arrays
from PIL import Image

import mmad_fast
from mmad_fast.errors import DataError

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The example's modules, imported as the script imports them."""
    names = ("line_inspector", "scan_folder", "result_folder", "json_lines")
    sys.path.insert(0, str(EXAMPLES))
    yield SimpleNamespace(**{name: import_module(name) for name in names})
    sys.path.remove(str(EXAMPLES))
    for name in names:
        del sys.modules[name]


@pytest.fixture
def detector(tiny_artifact: Path) -> mmad_fast.Detector:
    return mmad_fast.load(tiny_artifact)


def save_xyz(path: Path, xyz: np.ndarray) -> None:
    tifffile.imwrite(path, xyz.astype(np.float32), photometric="rgb")


def save_pair(folder: Path, name: str, *, seed: int = 0) -> None:
    rgb, xyz = make_arrays(seed)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(folder / f"{name}.png")
    save_xyz(folder / f"{name}.tiff", xyz)


def lines(folder: Path) -> list[dict]:
    files = sorted(folder.glob("results.jsonl*"), reverse=True)
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_bad_frames_are_counted_and_the_others_inspected(example, detector, tmp_path):
    scans = tmp_path / "scans"
    for name in ("a", "cut", "differs", "empty", "z"):
        save_pair(scans, name, seed=ord(name[0]))
    (scans / "cut.tiff").write_bytes((scans / "cut.tiff").read_bytes()[:1000])
    save_xyz(scans / "differs.tiff", np.zeros((7, 9, 3)))
    save_xyz(scans / "empty.tiff", np.zeros((96, 96, 3)))
    results = example.result_folder.ResultFolder(tmp_path / "out")
    inspector = example.line_inspector.LineInspector(detector, results=results)
    source = example.scan_folder.ScanFolder(scans, once=True, settle_s=0, poll_s=0)

    summary = inspector.run(source)

    assert (summary["inspected"], summary["failed"], summary["unsaved"]) == (2, 3, 0)
    assert summary["errors"] == {"DataError": 2, "EmptyScanError": 1}
    assert summary["p50_ms"] > 0
    assert summary["p95_ms"] is None  # of two scans it would only name the slower one
    records = {record["scan"]: record for record in lines(tmp_path / "out")}
    assert len(records) == 5
    assert records["cut"]["error"].startswith("DataError: ")
    assert records["cut"]["image_score"] is None
    for name in ("a", "z"):
        expected = detector.infer(*make_arrays(ord(name)))
        assert records[name]["image_score"] == expected.image_score
        assert records[name]["is_anomalous"] == expected.is_anomalous
        assert records[name]["error"] is None


def test_a_callback_that_raises_is_asked_again(example, detector):
    rgb, xyz = make_arrays()
    answers = iter([(rgb, xyz), RuntimeError("no light"), (rgb, xyz[:50]), "?", (rgb, xyz), None])

    def camera():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    records = []
    inspector = example.line_inspector.LineInspector(detector, on_record=records.append)
    summary = inspector.run(camera)
    assert (summary["inspected"], summary["failed"]) == (2, 3)
    assert [record.error is None for record in records] == [True, False, False, False, True]
    assert records[1].error == "RuntimeError: no light"
    assert records[0].scan == "scan 1"
    assert records[0].image_score == records[4].image_score


def test_stop_ends_it_after_the_current_scan(example, detector):
    scan = mmad_fast.Scan.from_arrays(*make_arrays(), name="part")
    inspector = example.line_inspector.LineInspector(
        detector, on_record=lambda record: inspector.stop()
    )
    assert inspector.run([scan, scan, scan])["inspected"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["waiting for a scan", "inspecting one"])
def test_a_signal_ends_it_with_a_summary(example, detector, number, where):
    arrays = make_arrays()
    before = signal.getsignal(number)

    def camera():
        if where == "waiting for a scan" and inspector.counts["inspected"]:
            signal.raise_signal(number)
            pytest.fail("went on waiting")
        return arrays

    def act(record):
        if where == "inspecting one":
            signal.raise_signal(number)

    inspector = example.line_inspector.LineInspector(detector, on_record=act)
    with example.line_inspector.stopping_on_signals(inspector):
        summary = inspector.run(camera)
    assert (summary["inspected"], summary["failed"], summary["unsaved"]) == (1, 0, 0)
    assert signal.getsignal(number) is before


def test_an_interrupt_that_nobody_asked_for_is_not_swallowed(example, detector):
    def camera():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        example.line_inspector.LineInspector(detector).run(camera)


@pytest.mark.parametrize(
    ("deadline_ms", "is_late", "late"), [(0.0, True, 2), (1e9, False, 0), (None, None, 0)]
)
def test_scans_beyond_the_deadline_are_late(example, detector, deadline_ms, is_late, late):
    records = []
    inspector = example.line_inspector.LineInspector(
        detector, deadline_ms=deadline_ms, on_record=records.append
    )
    assert inspector.run([make_arrays(), make_arrays(1)])["late"] == late
    assert [record.is_late for record in records] == [is_late, is_late]


def test_what_cannot_be_delivered_is_counted_and_the_rest_is(example, detector, tmp_path):
    def jam(record):
        raise OSError("the ejector is jammed")

    results = example.result_folder.ResultFolder(tmp_path)
    inspector = example.line_inspector.LineInspector(detector, on_record=jam, results=results)
    summary = inspector.run([make_arrays(), make_arrays(1)])
    assert (summary["inspected"], summary["undelivered"], summary["unsaved"]) == (2, 2, 0)
    assert len(lines(tmp_path)) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_does_not_stop_it(example, detector, tmp_path):
    (tmp_path / "results.jsonl").symlink_to("/dev/full")
    results = example.result_folder.ResultFolder(tmp_path)
    inspector = example.line_inspector.LineInspector(detector, results=results)
    summary = inspector.run([make_arrays(), make_arrays(1)])
    assert (summary["inspected"], summary["unsaved"], summary["undelivered"]) == (2, 2, 0)
    with pytest.raises(OSError, match="No space left"):
        results.close()

    (tmp_path / "results.jsonl").unlink()  # as when there is room again
    assert inspector.run([make_arrays(2)])["unsaved"] == 0
    assert [record["scan"] for record in lines(tmp_path)] == ["scan 1", "scan 2", "scan 3"]


def test_a_picture_that_cannot_be_written_is_not_a_lost_record(example, detector, tmp_path):
    detector.threshold = 0.0
    results = example.result_folder.ResultFolder(tmp_path / "out")
    results.folder = tmp_path / "gone"
    results.folder.touch()
    inspector = example.line_inspector.LineInspector(detector, results=results)
    summary = inspector.run([make_arrays(), make_arrays(1)])
    assert (summary["unsaved_pictures"], summary["unsaved"], summary["undelivered"]) == (2, 0, 0)
    assert len(lines(tmp_path / "out")) == 2


def test_memory_for_lines_that_cannot_be_written_is_bounded(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example.json_lines, "MAX_PENDING", 3)
    (tmp_path / "a").symlink_to("/dev/full")
    written = example.json_lines.JsonLines(tmp_path / "a", max_bytes=1000)
    for number in range(5):
        with pytest.raises(OSError, match="No space left"):
            written.append(number)
    assert (written.num_lost, written.num_unsaved) == (2, 5)
    (tmp_path / "a").unlink()
    written.flush()
    assert (list(written.read()), written.num_unsaved) == ([2, 3, 4], 2)


def test_a_line_that_was_cut_off_does_not_spoil_the_next(example, tmp_path):
    (tmp_path / "a").write_bytes(b'{"scan": 1}\n{"sca')
    written = example.json_lines.JsonLines(tmp_path / "a", max_bytes=1000)
    written.append({"scan": 2})
    written.append({"scan": 3})
    assert [line["scan"] for line in written.read()] == [1, 2, 3]


KILLED_WHILE_EJECTING = """
import sys
sys.path.insert(0, {examples!r})
import os, signal, mmad_fast
from pathlib import Path
from line_inspector import LineInspector
from scan_folder import ScanFolder

def eject(record):
    with open("ejected", "a") as file:
        file.write(record.scan + "\\n")
    if record.scan == "b":
        os.kill(os.getpid(), signal.SIGKILL)

source = ScanFolder("scans", once=True, settle_s=0, poll_s=0, position=Path("position.jsonl"))
LineInspector(mmad_fast.load({artifact!r}), on_record=eject, on_finished=source.finish).run(source)
"""


@pytest.mark.own_process
@pytest.mark.parametrize("repeat", [False, True])
def test_after_a_kill_no_part_is_ejected_twice(example, tiny_artifact, tmp_path, repeat):
    for age, name in enumerate("abc"):
        save_pair(tmp_path / "scans", name)
        for suffix in (".png", ".tiff"):
            path = (tmp_path / "scans" / name).with_suffix(suffix)
            os.utime(path, ns=(0, 10**18 + age * 10**9))
    program = KILLED_WHILE_EJECTING.format(examples=str(EXAMPLES), artifact=str(tiny_artifact))
    killed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "ejected").read_text().split() == ["a", "b"]

    def restarted():
        return example.scan_folder.ScanFolder(
            tmp_path / "scans",
            once=True,
            settle_s=0,
            poll_s=0,
            position=tmp_path / "position.jsonl",
            repeat_interrupted=repeat,
        )

    source = restarted()
    assert source.interrupted == ([] if repeat else ["b"])
    for name in source.interrupted:
        source.finish(name)
    found = []
    for scan in source:
        found.append(scan.name)
        source.finish(scan)
    assert found == (["b", "c"] if repeat else ["c"])
    again = restarted()
    assert (list(again), again.interrupted) == ([], [])


def test_the_program_reports_what_was_in_work_at_a_kill(
    example, tiny_artifact, tmp_path, monkeypatch, capsys
):
    save_pair(tmp_path / "scans", "a")
    save_pair(tmp_path / "scans", "b")
    out = tmp_path / "out"
    source = example.scan_folder.ScanFolder(
        tmp_path / "scans", once=True, settle_s=0, poll_s=0, position=tmp_path / "position.jsonl"
    )
    interrupted = next(iter(source)).name
    out.mkdir()
    (tmp_path / "position.jsonl").rename(out / "position.jsonl")
    arguments = [str(tiny_artifact), str(tmp_path / "scans"), "--once", "--settle-s", "0"]
    for expected in ((1, 1), (0, 0)):
        monkeypatch.setattr(sys, "argv", ["line_inspector.py", *arguments, "--output", str(out)])
        assert example.line_inspector.main() == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["inspected"], summary["failed"]) == expected
    records = {record["scan"]: record for record in lines(out)}
    assert len(records) == 2
    assert records[interrupted]["error"].startswith("InterruptedError: ")


def test_a_position_keeps_its_size(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example.scan_folder, "MAX_NOTES", 6)
    place = tmp_path / "position.jsonl"
    options = {"once": True, "settle_s": 0, "poll_s": 0, "position": place}
    source = example.scan_folder.ScanFolder(tmp_path, **options)
    for number in range(20):
        save_pair(tmp_path, "part", seed=number)
        os.utime(tmp_path / "part.png", ns=(0, 10**18 + number))
        os.utime(tmp_path / "part.tiff", ns=(0, 10**18 + number))
        for scan in source:
            source.finish(scan)
    assert 0 < len(place.read_text().splitlines()) <= 7
    assert list(example.scan_folder.ScanFolder(tmp_path, **options)) == []


def test_results_keep_within_their_size(example, tmp_path):
    results = example.result_folder.ResultFolder(tmp_path, max_mib=10 / 1024)
    for number in range(300):
        results.write(example.result_folder.Record(time="2026-01-01", scan=f"{number}"))
    results.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 10 * 1024
    kept = [int(record["scan"]) for record in lines(tmp_path)]
    assert kept == list(range(kept[0], 300))
    assert 0 < kept[0] < 295


def test_only_anomalous_scans_get_a_picture_and_the_oldest_go(example, detector, tmp_path):
    def inspect(threshold: float) -> None:
        detector.threshold = threshold
        results = example.result_folder.ResultFolder(tmp_path, max_overlays=3)
        inspector = example.line_inspector.LineInspector(detector, results=results)
        scans = [
            mmad_fast.Scan.from_arrays(*make_arrays(), name=f"../{number}") for number in range(2)
        ]
        inspector.run(scans)
        results.close()

    inspect(1e9)
    assert not list(tmp_path.glob("*.png"))
    inspect(0.0)
    first = sorted(tmp_path.glob("overlay_*.png"))
    inspect(0.0)  # as after a restart
    second = sorted(tmp_path.glob("overlay_*.png"))
    assert len(first) == 2
    assert len(second) == 3
    assert second[0] == first[1]
    assert not list(tmp_path.parent.glob("*.png"))
    with Image.open(second[0]) as image:
        image.load()


def test_a_folder_that_is_no_folder(example, tmp_path):
    with pytest.raises(DataError, match="is missing; a folder is needed there"):
        example.scan_folder.ScanFolder(tmp_path / "none")


class TestScanFolder:
    @pytest.fixture
    def watched(self, example, tmp_path):
        """A folder of scans with a clock that stands still; `names(s)` polls s seconds later."""
        clock = SimpleNamespace(now=100.0)
        source = example.scan_folder.ScanFolder(
            tmp_path, settle_s=0.5, patience_s=10, clock=lambda: clock.now
        )

        def names(seconds: float) -> list[str]:
            clock.now += seconds
            return [scan.name for scan in source.poll()]

        return SimpleNamespace(path=tmp_path, names=names, source=source, clock=clock)

    def test_a_file_that_still_grows_is_left_alone(self, watched):
        save_pair(watched.path, "part")
        content = (watched.path / "part.tiff").read_bytes()
        for size in (1000, 2000, 3000):
            (watched.path / "part.tiff").write_bytes(content[:size])
            assert watched.names(0.4) == []
        (watched.path / "part.tiff").write_bytes(content)
        assert watched.names(5.0) == []  # seen changed just now
        assert watched.names(0.4) == []
        assert watched.names(0.2) == ["part"]
        assert watched.names(60) == []  # once

    def test_a_pair_counts_once_both_files_are_there(self, watched):
        save_pair(watched.path, "part")
        (watched.path / "part.tiff").rename(watched.path / "late")
        assert [watched.names(1), watched.names(8)] == [[], []]
        (watched.path / "late").rename(watched.path / "part.tiff")
        assert [watched.names(1), watched.names(1)] == [[], ["part"]]

    @pytest.mark.parametrize("damage", ["no partner", "empty"])
    def test_a_file_without_partner_or_content_is_bad_in_the_end(self, watched, damage):
        save_pair(watched.path, "part")
        (watched.path / "part.png").unlink()
        if damage == "empty":
            (watched.path / "part.png").touch()
        assert [watched.names(1), watched.names(9)] == [[], []]
        watched.clock.now += 2
        (scan,) = watched.source.poll()
        with pytest.raises(DataError, match="is missing|is empty"):
            scan.load()

    def test_the_oldest_comes_first_and_a_new_one_of_the_same_name_again(self, watched):
        for age, name in enumerate(("a", "c", "b")):
            save_pair(watched.path, name)
            for suffix in (".png", ".tiff"):
                os.utime((watched.path / name).with_suffix(suffix), ns=(0, 10**9 * (9 - age)))
        assert [watched.names(0), watched.names(1)] == [[], ["b", "c", "a"]]
        save_pair(watched.path, "c", seed=1)
        assert [watched.names(1), watched.names(1)] == [[], ["c"]]

    @pytest.mark.parametrize("first", [".png", ".tiff"])
    def test_a_pair_that_is_written_again_in_two_steps(self, watched, first):
        save_pair(watched.path, "part")
        assert [watched.names(0), watched.names(1)] == [[], ["part"]]
        second = {".png": ".tiff", ".tiff": ".png"}[first]
        old = (watched.path / f"part{second}").read_bytes()
        stat = (watched.path / f"part{second}").stat()
        save_pair(watched.path, "part", seed=1)
        new = (watched.path / f"part{second}").read_bytes()
        (watched.path / f"part{second}").write_bytes(old)
        os.utime(watched.path / f"part{second}", ns=(0, stat.st_mtime_ns))
        assert [watched.names(1), watched.names(1), watched.names(1)] == [[], [], []]
        (watched.path / f"part{second}").write_bytes(new)
        assert watched.names(1) == []
        watched.clock.now += 1
        (scan,) = watched.source.poll()
        np.testing.assert_array_equal(scan.load().rgb, make_arrays(1)[0])

    def test_a_pair_of_which_one_file_only_is_written_again_is_bad_in_the_end(self, watched):
        save_pair(watched.path, "part")
        assert [watched.names(0), watched.names(1)] == [[], ["part"]]
        save_xyz(watched.path / "part.tiff", make_arrays(1)[1])
        assert [watched.names(1), watched.names(9)] == [[], []]
        watched.clock.now += 2
        (scan,) = watched.source.poll()
        with pytest.raises(DataError, match="only one was written again"):
            scan.load()

    def test_a_pair_that_changes_while_it_is_read_is_bad(self, watched):
        save_pair(watched.path, "part")
        assert watched.names(0) == []
        watched.clock.now += 1
        (scan,) = watched.source.poll()
        os.utime(watched.path / "part.png", ns=(0, 5))
        with pytest.raises(DataError, match="changed while they were read"):
            scan.load()

    def test_colours_and_points_in_folders_of_their_own(self, watched):
        save_pair(watched.path / "rgb", "part")
        (watched.path / "xyz").mkdir()
        (watched.path / "rgb" / "part.tiff").rename(watched.path / "xyz" / "part.tiff")
        assert [watched.names(0), watched.names(1)] == [[], ["part"]]

    def test_a_folder_that_goes_and_comes_back(self, watched):
        save_pair(watched.path / "rgb", "part")
        aside = watched.path.with_name("aside")
        watched.path.rename(aside)
        assert watched.names(1) == []
        aside.rename(watched.path)
        save_pair(watched.path, "part")
        assert [watched.names(1), watched.names(1)] == [[], ["part"]]


@pytest.mark.own_process
def test_the_program_needs_no_torch_and_ends_on_a_signal(tiny_artifact, tmp_path):
    save_pair(tmp_path / "scans", "part")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({FIT_HALF!r}))"
    script = EXAMPLES / "line_inspector.py"
    program = f"{blocked}; import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    # `python SCRIPT` puts the script's folder on the path; runpy with -c does not.
    engine = ("--engine", "onnxruntime", "--device", "cpu")
    options = (*engine, "--deadline-ms", "1e6", "--output", tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-c", program, tiny_artifact, tmp_path / "scans", *options],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        log = []
        for line in process.stderr:
            log.append(line)
            if "inspecting what comes into" in line:
                break
        assert any("INFO engine onnxruntime, fp32: " in line for line in log), log
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    summary = json.loads(output)
    assert summary["failed"] == summary["late"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ARTIFACT", "nowhere"], 1, "error: nowhere is missing"),
        (["nowhere", "."], 1, "error: nowhere: no such folder"),
        (["ARTIFACT", ".", "--engine", "abacus"], 1, "there is no engine 'abacus'"),
        (["ARTIFACT", ".", "--deadline-ms", "nan"], 2, "nan is not a number from 0"),
        (["ARTIFACT", ".", "--threads", "0"], 2, "--threads: 0 is not in 1 to 1024"),
        (["ARTIFACT", ".", "--unit", "cm"], 2, "invalid choice: 'cm'"),
    ],
)
def test_what_it_cannot_begin_with(
    example, tiny_artifact, tmp_path, monkeypatch, capsys, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    given = [str(tiny_artifact) if text == "ARTIFACT" else text for text in arguments]
    monkeypatch.setattr(sys, "argv", ["line_inspector.py", *given])
    try:
        ended = example.line_inspector.main()
    except SystemExit as error:
        ended = error.code
    assert ended == code
    assert words in capsys.readouterr().err
