"""The command line: exit codes, messages, JSON on stdout and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tifffile
from cli.conftest import Call
from conftest import make_arrays
from onnx import numpy_helper
from PIL import Image
from test_artifact import rewrite_manifest

from mmad_fast import __version__, cli
from mmad_fast.backbones.table import CNN_BACKBONES, RGB_BACKBONES
from mmad_fast.cli.options import parse_shots
from mmad_fast.whole_folder import fingerprint

ROOT = Path(__file__).parents[2]
VERBS = (
    *(
        "bench",
        "fit",
        "train-shared",
        "infer",
        "eval",
        "export",
        "synth",
        "doctor",
        "weights",
        "sign",
    ),
)


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    program = "from mmad_fast.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
    )


def run_json(*arguments: object) -> dict:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_scan(folder: Path, name: str, seed: int = 0, scale: float = 1.0) -> Path:
    rgb, xyz = make_arrays(seed)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(folder / f"{name}.png")
    tifffile.imwrite(folder / f"{name}.tiff", xyz * np.float32(scale), photometric="rgb")
    return folder / f"{name}.png"


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    """Of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["mmad-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb: str) -> None:
    done = run(verb, "--help")
    assert done.returncode == 0
    assert f"mmad-fast {verb}" in done.stdout
    assert "Example" in done.stdout


@pytest.mark.parametrize("method", ["cfm", "m3dm"])
def test_help_does_not_import_the_heavy_packages(method: str) -> None:
    program = (
        "import sys, contextlib\n"
        "from mmad_fast.cli import app\n"
        f"with contextlib.suppress(SystemExit): app(['bench', '--method', '{method}', '--help'])\n"
        "print(sorted({'torch', 'onnxruntime', 'sklearn', 'scipy'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_version() -> None:
    assert run("--version").stdout.startswith("mmad-fast 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["polish"],
        ["infer"],
        ["synth", "x", "--train", "0"],
        ["doctor", "--colour"],
        ["fit", "x"],
        ["fit", "-o", "x"],
        ["fit", "a", "--data", "a", "-o", "x"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage:" in done.stderr


def test_synth_writes_a_set_once(tmp_path: Path) -> None:
    target = tmp_path / "set"
    counts = ("--train", 1, "--validation", 0, "--good", 1, "--per-defect", 1, "--size", 64)
    content = run_json("synth", target, "--category", "biscuit", *counts)
    assert content["categories"] == ["biscuit"]
    assert (target / "biscuit" / "train" / "good" / "rgb").is_dir()
    again = run("synth", target, *counts)
    assert again.returncode == 1
    assert "error:" in again.stderr
    unknown = run("synth", tmp_path / "other", "--category", "spaceship")
    assert unknown.returncode == 1
    assert "biscuit" in unknown.stderr


def test_infer_one_scan(tiny_artifact: Path, tmp_path: Path) -> None:
    rgb = write_scan(tmp_path / "scans", "part")
    content = run_json("infer", tiny_artifact, rgb, "--output", tmp_path / "out")
    (row,) = content["scans"]
    assert row["is_anomalous"] is False
    assert 0 < row["image_score"] < row["threshold"]
    assert content["threshold"]["value"] == row["threshold"]
    assert content["threshold"]["source"] == "validation"
    assert "the only score (validation scans)" in content["threshold_note"]
    with Image.open(row["overlay"]) as overlay:
        assert min(overlay.size) >= 96
    assert tifffile.imread(row["anomaly_map"]).shape == (96, 96)


def test_infer_a_folder_goes_on_after_a_bad_scan(tiny_artifact: Path, tmp_path: Path) -> None:
    for name in ("a", "c"):
        write_scan(tmp_path, name)
    write_scan(tmp_path, "b", scale=1000.0)
    done = run("infer", tiny_artifact, tmp_path, "--json")
    assert done.returncode == 1
    rows = json.loads(done.stdout)["scans"]
    assert [row["scan"] for row in rows] == ["a", "b", "c"]
    assert "unit='mm'" in rows[1]["error"]
    assert "1 of 3 scans could not be scored" in done.stderr


def test_infer_millimetres(tiny_artifact: Path, tmp_path: Path) -> None:
    rgb = write_scan(tmp_path, "part", scale=1000.0)
    content = run_json("infer", tiny_artifact, rgb, "--unit", "mm")
    assert content["scans"][0]["image_score"] > 0


def test_infer_takes_the_number_that_is_missing(tiny_artifact: Path, tmp_path: Path) -> None:
    """At 9 pixels, too few to be found; in the part, so that it changes the answer."""
    rgb, xyz = make_arrays()
    for name, number in (("holes", 0.0), ("marked", 0.47)):
        (tmp_path / name).mkdir()
        numbers = xyz.copy()
        numbers[45:48, 44:47] = number
        Image.fromarray(rgb).save(tmp_path / name / "part.png")
        tifffile.imwrite(tmp_path / name / "part.tiff", numbers, photometric="rgb")
    scores = [
        run_json("infer", tiny_artifact, tmp_path / name / "part.png", *options)["scans"][0]
        for name, options in (("holes", ()), ("marked", ("--missing", 0.47)))
    ]
    assert scores[0]["image_score"] == scores[1]["image_score"]


def test_infer_prints_a_table(tiny_artifact: Path, tmp_path: Path) -> None:
    done = run("infer", tiny_artifact, write_scan(tmp_path, "part"))
    assert done.returncode == 0
    assert "part" in done.stdout
    assert "good" in done.stdout
    assert " = the only score (validation scans)" in done.stdout


def test_a_folder_for_pictures_is_checked_before_scoring(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    rgb = write_scan(tmp_path / "scans", "part")
    for place, words in ((rgb, "is a file; name a folder"), (rgb / "x", "Not a directory; check")):
        done = run("infer", tiny_artifact, rgb, "-o", place, "--json")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert set(json.loads(done.stdout)) == {"error"}
        assert f"error: {place}: {words}" in done.stderr


@pytest.mark.parametrize("place", ["file/x", "/proc/xx"])
def test_synth_into_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    done = run("synth", tmp_path / place, "--json")
    assert done.returncode == 1
    assert re.search(rf"error: .*{place} cannot be written .*; choose a folder", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_refusal_of_the_system_is_an_error_message() -> None:
    program = (
        "import sys; from mmad_fast import cli\n"
        "def refuse(): raise PermissionError(13, 'Permission denied', 'runs/x')\n"
        "cli.app = refuse; sys.argv = ['mmad-fast', 'bench', '--json']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    message = "runs/x: Permission denied; choose a place that you may read and write"
    assert done.returncode == 1
    assert done.stderr == f"error: {message}\n"
    error = {"type": "PermissionError", "message": message}
    assert json.loads(done.stdout) == {"error": error}


def test_brackets_in_names_are_shown_as_they_are(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x[" / "b]"  # together they would close a tag that was never opened
    write_scan(folder, "part[abc]:bug:")
    (folder / "bad[red].png").touch()
    (folder / "bad[red].tiff").touch()
    done = run("infer", tiny_artifact, folder)
    assert "Traceback" not in done.stderr
    for words in ("part[abc]:bug:", "bad[red] ", "x[/b]"):
        assert words in done.stdout


def test_fit_takes_the_data_as_an_option_too(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for named in (("--data", data), (data,)):
        done = run("fit", *named, "--output", tmp_path / "o")
        assert done.returncode == 1
        assert f"{data} is empty" in done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("empty", "is empty"),
        ("png", "no XYZ file found"),
        ("zero", "part.tiff"),
        ("absent", "exist"),
    ],
)
def test_infer_of_nothing_usable(
    tiny_artifact: Path, tmp_path: Path, content: str, words: str
) -> None:
    target = tmp_path / "scans"
    if content != "absent":
        target.mkdir()
    if content in ("png", "zero"):
        target = write_scan(target, "part")
        target.with_suffix(".tiff").unlink()
    if content == "zero":
        target.with_suffix(".tiff").write_bytes(b"")
    done = run("infer", tiny_artifact, target)
    assert done.returncode == 1
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_errors_are_json_too(tmp_path: Path) -> None:
    done = run("infer", tmp_path / "absent", tmp_path, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] in ("ArtifactError", "DataError")


def test_doctor_lists_every_op(tiny_artifact: Path) -> None:
    content = run_json("doctor", tiny_artifact)
    assert content["version"] == __version__
    rows = content["ops"]
    on_host = [row for row in rows if row["arrays"] == "numpy arrays"]
    chosen = {row["op"]: row["backend"] for row in on_host if row["chosen"]}
    assert chosen == dict.fromkeys(chosen, "cpu")
    assert set(chosen) == set(_names_of_tables())
    on_device = [row for row in rows if row["arrays"] == "cuda arrays"]
    assert {row["op"] for row in on_device} == set(chosen)
    assert {row["backend"] for row in on_device} == {"cuda", "triton", "torch"}
    assert all((row["reason"] is None) == row["runs"] for row in rows)
    assert set(content["gpu"]) == {
        "driver",
        "devices",
        "cuda_kernels",
        "torch",
        "torch_cuda",
        "triton",
    }
    report = content["artifact"]
    assert (report["agrees"], report["device"]) == (True, "cpu")
    own = next(row for row in report["engines"] if row["engine"] == "onnxruntime")
    assert (own["target"], own["precision"], own["verdict"]) == ("onnx", "fp32", "agrees")
    assert own["map_difference"] <= report["tolerance"]
    assert all((row["score"] is None) == (row["reason"] is not None) for row in report["engines"])
    assert "farthest_point_sampling" in run("doctor").stdout


def _names_of_tables() -> list[str]:
    """The name of each table of backends, read from the sources."""
    sources = (ROOT / "mmad_fast" / "ops").glob("*/backends.py")
    names = [
        name
        for source in sources
        for name in re.findall(r'^\w+ = Op\(\s*"(.+)"', source.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(set(names)) == len(names) >= 10
    return names


def test_weights_lists_every_checkpoint() -> None:
    names = {row["name"] for row in run_json("weights")["weights"]}
    assert names == {*RGB_BACKBONES, *CNN_BACKBONES, "point-mae"}


def test_threads_must_be_positive(tiny_artifact: Path, tmp_path: Path) -> None:
    assert run("infer", tiny_artifact, tmp_path, "--threads", 0).returncode == 2


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--method", "cfm-xxl", "there is no method 'cfm-xxl'; known are cfm, cfm-m, cfm-s, cfm-t"),
        (
            "--point-layers",
            "one",
            "'one'; it must be one or more numbers with commas, e.g. 1,2,3",
        ),
        ("--point-layers", "1,-2", "point_layers is (1, -2); it must be at least 0"),
        ("--seed", "-1", "Invalid value for '--seed'"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "bench"])
def test_option_values_that_cannot_be_are_wrong_usage(
    tmp_path: Path, verb: str, option: str, value: str, words: str
) -> None:
    target = ("--data", tmp_path) if verb == "bench" else (tmp_path, "--output", tmp_path / "o")
    done = run(verb, *target, option, value)
    assert done.returncode == 2
    assert words in done.stderr


DOCTOR_WITHOUT = """
import sys
import mmad_fast.compiled_kernels, mmad_fast.threads
refusal = lambda: "the compiled kernels do not load (no such file)"
mmad_fast.compiled_kernels.kernels_refusal = mmad_fast.threads.kernels_refusal = refusal
sys.modules["onnxruntime"] = None
from mmad_fast.cli import main
main()
"""


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_doctor_reports_what_does_not_load(options: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR_WITHOUT, "doctor", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert "the compiled kernels do not load" in done.stdout
    assert "pip install onnxruntime" in done.stdout
    if options:
        content = json.loads(done.stdout)
        assert content["threads"] is None
        assert {row["backend"] for row in content["ops"] if row["chosen"]} == {"reference"}


def test_doctor_takes_the_version_of_whatever_provides_the_engine() -> None:
    import onnxruntime

    program = (
        "import sys, importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "def version(name):\n"
        "    if name == 'onnxruntime': raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
        "from mmad_fast.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["engines"]
    row = next(row for row in rows if (row["engine"], row["device"]) == ("onnxruntime", "cpu"))
    assert (row["version"], row["reason"]) == (onnxruntime.__version__, None)


@pytest.fixture
def exported(tiny_artifact: Path, tmp_path: Path, call: Call) -> Path:
    """A copy of the artifact with an fp16 engine for ONNX Runtime."""
    copied = Path(shutil.copytree(tiny_artifact, tmp_path / "runs" / "artifact"))
    options = ("--to", "onnx", "--precision", "fp16", "--no-measure", "--json")
    done = call("export", copied, *options)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["graphs"] == {"rgb": ["rgb.fp16.onnx"], "points": ["points.fp16.onnx"]}
    assert content["golden"]["engine"] == "onnxruntime"
    assert content["measured"] is content["not_run"] is None
    return copied


def test_export_prints_a_table(tiny_artifact: Path, tmp_path: Path, call: Call) -> None:
    new = tmp_path / "new"
    done = call("export", tiny_artifact, "--to", "onnx", "--precision", "int8", "--output", new)
    assert done.returncode == 0, done.stderr
    assert "rgb.int8.onnx" in done.stdout
    assert "note: calibrated with the golden scan alone" in done.stderr
    assert re.search(r"golden scan by onnxruntime: map differs by .* ms with \d+ thr", done.stderr)
    assert f"wrote {new}" in done.stderr
    rows = json.loads(call("doctor", new, "--json").stdout)["artifact"]["engines"]
    assert {row["precision"] for row in rows} == {"fp32", "int8"}


def test_export_as_a_process(tiny_artifact: Path, tmp_path: Path) -> None:
    content = run_json("export", tiny_artifact, "--to", "onnx", "--output", tmp_path / "new")
    assert content["golden"]["map_difference"] < 1e-4
    assert content["measured"]["threads"] >= 1


def test_infer_and_doctor_take_an_engine_and_its_precision(
    exported: Path, tmp_path: Path, call: Call
) -> None:
    rgb = write_scan(tmp_path / "scans", "part")
    scores = []
    for options in ((), ("--engine", "onnxruntime", "--engine-precision", "fp16")):
        content = json.loads(call("infer", exported, rgb, *options, "--json").stdout)
        assert (content["engine"], bool(content["engine_reason"])) == ("onnxruntime", True)
        assert content["engine_precision"] == ("fp16" if options else "fp32")
        scores.append(content["scans"][0]["image_score"])
    assert 0 < abs(scores[0] - scores[1]) < 0.01 * scores[0]
    options = ("--engine", "onnxruntime", "--precision", "fp16")
    report = json.loads(call("doctor", exported, *options, "--json").stdout)
    (row,) = report["artifact"]["engines"]
    assert (row["files"]["rgb"], row["verdict"]) == ("rgb.fp16.onnx", "agrees")
    table = call("doctor", exported).stdout
    assert re.search(r"onnxruntime +. rgb\.fp16\.onnx +.*agrees", table)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "abacus"), "there is no engine 'abacus'; known are"),
        (("--engine-precision", "fp16"), "mmad-fast export ARTIFACT --to onnx --precision fp16"),
        (("--engine-precision", "f16"), "there is no precision 'f16'; known are fp32, fp16"),
        (("--device", "tpu"), "no device 'tpu'"),
    ],
)
def test_infer_on_an_engine_that_is_not_there(
    tiny_artifact: Path, tmp_path: Path, call: Call, options: tuple[str, ...], words: str
) -> None:
    done = call("infer", tiny_artifact, write_scan(tmp_path, "part"), *options)
    assert done.returncode == 1
    assert words in done.stderr


def test_doctor_on_an_engine_that_is_not_there(tiny_artifact: Path, call: Call) -> None:
    done = call("doctor", tiny_artifact, "--engine", "abacus")
    assert (done.returncode, "there is no engine 'abacus'" in done.stderr) == (1, True)
    done = call("doctor", tiny_artifact, "--precision", "fp8")
    assert (done.returncode, "mmad-fast export" in done.stderr) == (1, True)
    assert call("doctor", "--engine", "onnxruntime").returncode == 2


def test_doctor_fails_where_an_engine_differs(exported: Path, call: Call) -> None:
    def claim(content: dict) -> None:
        content["engines"][0]["golden"] = None
        content["engines"][0]["precision"] = "fp32"

    rewrite_manifest(exported, claim)
    before = call("doctor", exported, "--engine", "onnxruntime")
    model = onnx.load(exported / "rgb.fp16.onnx")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f":
            tensor.CopyFrom(numpy_helper.from_array(array * array.dtype.type(2), tensor.name))
    onnx.save(model, exported / "rgb.fp16.onnx")
    changed = {"rgb.fp16.onnx": fingerprint(exported / "rgb.fp16.onnx")}
    rewrite_manifest(exported, lambda content: content["files"].update(changed))
    done = call("doctor", exported, "--engine", "onnxruntime")
    assert (before.returncode, done.returncode) == (0, 1)
    assert "DIFFERS by more than is accepted" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "abacus"), "there is no 'abacus'; known are onnx, openvino, tensorrt-rtx"),
        (("--to", "onnx", "--precision", "fp4"), "there is no 'fp4'; known are fp32, fp16"),
        (("--to", "onnx", "--batch", "4,1"), "batch is '4,1'"),
        (("--to", "onnx", "--batch", "8,4,1"), "1 <= min <= opt <= max"),
        (("--to", "tensorrt-rtx", "--sm", "8.6"), "without the dot, e.g. 86,89"),
        (("--to", "tensorrt-rtx", "--sm", ""), "without the dot, e.g. 86,89"),
        ((), "Missing option '--to'"),
    ],
)
def test_wrong_usage_of_export(
    tiny_artifact: Path, call: Call, options: tuple[str, ...], words: str
) -> None:
    done = call("export", tiny_artifact, *options)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


def test_errors_of_export_are_json_too(tiny_artifact: Path, tmp_path: Path, call: Call) -> None:
    for arguments, kind in (
        ((tmp_path / "absent", "--to", "onnx"), "ArtifactError"),
        ((tiny_artifact, "--to", "onnx", "--sm", "86"), "InvalidInputError"),
        ((tiny_artifact, "--to", "tensorrt-rtx", "--sm", "87"), "InvalidInputError"),
    ):
        done = call("export", *arguments, "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["error"]["type"] == kind


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--method", "m3d"], "no method 'm3d'"),
        (["fit", "--shots", "0"], "greater than or equal to 1"),
        (["fit", "--num-groups", "60000"], "--num-groups"),
        (["bench", "--few-shot", "two"], "e.g. 5,10,50"),
        (["bench", "--few-shot", "0,5"], "e.g. 5,10,50"),
        (["bench", "--few-shot", "5,"], "e.g. 5,10,50"),
    ],
)
def test_wrong_values_are_wrong_usage(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert exit_code(monkeypatch, *arguments, "--data", "a", "--output", "b") == 2
    assert words in capsys.readouterr().err


def test_shots_are_read() -> None:
    assert parse_shots(" 50,5 , 10,5") == (5, 10, 50)
    assert parse_shots(None) == ()
