"""examples/cpp beside Python. Building it takes about 25 s of one core."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import RGB_DIM, TINY_PARAMETERS, make_arrays
from numpy.typing import NDArray
from robustness.replacing import replacements, write_other, writer_arguments
from test_artifact import rewrite_manifest

from mmad_fast import load
from mmad_fast.artifact import read_artifact, write_artifact
from mmad_fast.methods.family import get_recipe
from mmad_fast.missing_values import MissingRecord, MissingValue
from mmad_fast.ops.pixel_mapping import MappingNetwork
from mmad_fast.threshold import VALIDATION, Threshold
from mmad_fast.whole_folder import DIGEST_KEY, MANIFEST_FILE, write_manifest

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
CANNOT_BE_HAD = 3
TOKEN_PARAMETERS = replace(TINY_PARAMETERS, geometry="fpfh")
SAME, DIFFERS, REFUSED = 0, 1, 2


def skip_unless_in_ci(reason: str) -> None:
    """Where the example cannot be built a test run by hand goes on; continuous integration fails,
    which installs what it needs (.ci/run)."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("cmake", "make", "c++"):
        if shutil.which(tool) is None:
            skip_unless_in_ci(f"building the C++ example needs {tool}, which is not on the PATH")
    folder = tmp_path_factory.mktemp("cpp")
    root, build = folder / "onnxruntime", folder / "build"
    got = subprocess.run(
        [SOURCE / "get_onnxruntime.sh", root, sys.executable],
        capture_output=True,
        text=True,
        timeout=180,
    )
    if got.returncode == CANNOT_BE_HAD:
        skip_unless_in_ci(f"no headers of ONNX Runtime: {got.stderr.strip().splitlines()[-1]}")
    assert got.returncode == 0, got.stderr
    # In half the time of the default: optimised less, since nothing is timed here, and the files of
    # the example compiled together, since most of their time goes into the headers they share.
    options = [
        f"-DONNXRUNTIME_ROOT={root}",
        "-DMMAD_FAST_WERROR=ON",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
        "-DCMAKE_UNITY_BUILD=ON",
    ]
    for command in (
        ["cmake", "-G", "Unix Makefiles", "-S", SOURCE, "-B", build, *options],
        ["cmake", "--build", build, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        missing = re.search(r"apt-get\s+install\s.*", done.stderr)
        if done.returncode and missing:
            skip_unless_in_ci(f"the C++ example needs Debian packages: {missing.group()}")
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "mmad_fast_infer"


@pytest.mark.parametrize("package", ["nlohmann_json", "OpenSSL"])
def test_a_missing_library_is_named_with_its_package(
    program: Path, tmp_path: Path, package: str
) -> None:
    root = program.parents[1] / "onnxruntime"
    options = [f"-DONNXRUNTIME_ROOT={root}", f"-DCMAKE_DISABLE_FIND_PACKAGE_{package}=ON"]
    done = subprocess.run(
        ["cmake", "-S", SOURCE, "-B", tmp_path, *options], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "apt-get install nlohmann-json3-dev libssl-dev" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), (None, pytest.skip.Exception)]
)
def test_what_is_missing_fails_in_continuous_integration(
    ci: str | None, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no compiler"):
        skip_unless_in_ci("no compiler")


def run(program: Path, *arguments: object, code: int = SAME) -> str:
    """What the program printed, to either stream."""
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert bool(done.stderr) == (code == REFUSED)
    return done.stdout + done.stderr


def field(printed: str, name: str) -> str:
    return next(line.split()[1] for line in printed.splitlines() if line.startswith(name))


def rewritten(artifact: Path, target: Path, **changes: Any) -> Path:
    """The artifact with other arguments of write_artifact."""
    return write_artifact(target, **{**writer_arguments(artifact), **changes})


def save_scan(file: Path, rgb: NDArray[np.uint8], xyz: NDArray) -> Path:
    arrays = {"rgb": np.ascontiguousarray(rgb), "xyz": np.ascontiguousarray(xyz)}
    safetensors.numpy.save_file(arrays, file)
    return file


def check_against_python(
    program: Path, artifact: Path, rgb: NDArray[np.uint8], xyz: NDArray, folder: Path
) -> float:
    """The sum of the map, after map, score and decision have been compared."""
    expected = load(artifact).infer(rgb, xyz)
    scan, answer = save_scan(folder / "scan.safetensors", rgb, xyz), folder / "answer.safetensors"
    printed = run(program, artifact, scan, "--map", answer)
    found = safetensors.numpy.load_file(answer)
    scale = expected.anomaly_map.max()
    assert scale > 0
    np.testing.assert_allclose(found["map"], expected.anomaly_map, rtol=0, atol=1e-4 * scale)
    assert found["score"][0] == pytest.approx(expected.image_score, rel=1e-4)
    assert ((found["map"] == 0) == (expected.anomaly_map == 0)).all()
    assert float(field(printed, "score")) == pytest.approx(found["score"][0], rel=1e-8)
    decision = {True: "anomalous", False: "good", None: "none:"}[expected.is_anomalous]
    assert field(printed, "decision") == decision
    return round(float(expected.anomaly_map.sum()), 1)


def test_the_golden_scan_gives_the_expected_answer(program: Path, tiny_artifact: Path) -> None:
    printed = run(program, tiny_artifact, "--runs", 2, "--threads", 2)
    golden = read_artifact(tiny_artifact).golden()
    assert float(field(printed, "score")) == pytest.approx(golden.expected_score, rel=1e-4)
    assert "the same answer" in printed
    stages = load(tiny_artifact).infer(golden.rgb, golden.xyz).stage_ms
    for stage in stages:
        assert float(field(printed, stage)) >= 0


def test_an_artifact_that_is_replaced_meanwhile_is_read_whole(
    program: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    """It runs the golden scan: all files of an artifact have a part in the answer."""

    def answer(artifact: Path) -> tuple[str, ...]:
        printed = run(program, artifact, "--threads", 1)
        assert "the same answer" in printed
        return tuple(field(printed, name) for name in ("score", "threshold"))

    other = write_other(tiny_artifact, tmp_path)
    expected = {answer(folder) for folder in (tiny_artifact, other)}
    assert len(expected) == 2
    target, answers = rewritten(tiny_artifact, tmp_path / "target"), []
    with replacements(tiny_artifact, other, target, 100) as writer:
        while writer.poll() is None:
            answers.append(answer(target))
    assert writer.returncode == 0
    assert set(answers) <= expected
    assert len(answers) > 5


@pytest.fixture
def old_artifact(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).parents[1] / "fixtures" / "schema3_cfm.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "schema3_cfm"


def test_an_artifact_of_schema_3_is_refused_with_advice(program: Path, old_artifact: Path) -> None:
    printed = run(program, old_artifact, code=REFUSED)
    assert "has schema 3, this program reads 4 to 5; fit the detector again" in printed
    assert "run it with mmad_fast in Python" in printed


def test_a_detector_fitted_with_schema_3_gives_the_recorded_answer_in_schema_4(
    program: Path, old_artifact: Path, tmp_path: Path
) -> None:
    tensors = read_artifact(old_artifact).tensors()
    artifact = rewritten(
        old_artifact,
        tmp_path / "artifact",
        tensors=with_rotation(tensors, "rgb_to_point", "point_to_rgb"),
    )
    golden = read_artifact(old_artifact).golden()
    answer = tmp_path / "answer.safetensors"
    assert "the same answer" in run(program, artifact, "--map", answer)
    found = safetensors.numpy.load_file(answer)
    scale = golden.expected_map.max()
    np.testing.assert_allclose(found["map"], golden.expected_map, rtol=0, atol=1e-5 * scale)
    assert found["score"][0] == pytest.approx(golden.expected_score, rel=1e-5)


def test_another_golden_answer_is_found(program: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    golden = read_artifact(tiny_artifact).golden()
    wrong_map = golden.expected_map.copy()
    wrong_map[28, 28] += 2e-3 * golden.expected_map.max()
    for wrong in (
        replace(golden, expected_map=wrong_map),
        replace(golden, expected_score=golden.expected_score * 1.002),
    ):
        artifact = rewritten(tiny_artifact, tmp_path / "artifact", golden=wrong)
        assert "ANOTHER ANSWER" in run(program, artifact, code=DIFFERS)


def random_network(name: str, sizes: list[int]) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    layers = ["input", *(f"projection_{c}" for c in "abcdef"[: len(sizes) - 3]), "output"]
    tensors = {}
    for layer, dim_in, dim_out in zip(layers, sizes[:-1], sizes[1:], strict=True):
        tensors[f"{name}.{layer}.weight"] = rng.normal(0, 0.5, (dim_out, dim_in))
        tensors[f"{name}.{layer}.bias"] = rng.normal(0, 0.1, dim_out)
    return {key: tensor.astype(np.float32) for key, tensor in tensors.items()}


def with_rotation(tensors: dict[str, NDArray], *networks: str) -> dict[str, NDArray]:
    """The tensors with what schema 4 stores beside those of the networks."""
    added = {}
    for name in networks:
        added |= MappingNetwork.from_tensors(tensors, f"{name}.").rotated_tensors(f"{name}.")
    return {**tensors, **added}


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("m3dm", {"smoothing": "sigma4", "aggregation": "sum", "skip_near_origin": True}),
        ("cfm", {"pixel_stride": 4, "score_norm": "raw", "aggregation": "max"}),
        ("none", {"mapping": "intramodal", "aggregation": "psi_2d", "hidden": "big"}),
    ],
)
def test_every_switch(
    program: Path, tiny_artifact: Path, tmp_path: Path, recipe: str, changes: dict[str, Any]
) -> None:
    rgb, xyz = make_arrays(3, size=120)
    rgb, xyz = rgb[10:90], xyz[10:90]  # not square
    tensors = {
        **read_artifact(tiny_artifact).tensors(),
        **with_rotation(
            random_network("rgb_to_rgb", [RGB_DIM, 11, 9, 7, 5, RGB_DIM]), "rgb_to_rgb"
        ),
    }
    artifact = rewritten(
        tiny_artifact,
        tmp_path / "artifact",
        preprocess=get_recipe(recipe).to_dict(),
        parameters=replace(TINY_PARAMETERS, **changes).to_manifest(),
        tensors=tensors,
        threshold=Threshold(1e-6, 0.99, 4, VALIDATION) if recipe == "m3dm" else None,
    )
    check_against_python(program, artifact, rgb, xyz, tmp_path)


def test_double_precision_millimetres(program: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    rgb, xyz = make_arrays(4)
    millimetres = xyz.astype(np.float64) * 1e3
    expected = load(tiny_artifact).infer(rgb, millimetres, unit="mm").image_score
    scan = save_scan(tmp_path / "scan.safetensors", rgb, millimetres)
    printed = run(program, tiny_artifact, scan, "--unit", "mm")
    assert float(field(printed, "score")) == pytest.approx(expected, rel=1e-4)
    assert "check the unit" in run(program, tiny_artifact, scan, code=REFUSED)


def test_what_stands_for_no_measurement_is_missing(
    program: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    """The same rules as in Python, since they are the same code."""
    rgb, xyz = make_arrays(5)
    xyz[:, 40, 0] = xyz[50, :, 1] = 0  # measured
    holes, marked, gridded, strays = xyz.copy(), xyz.copy(), xyz.copy(), xyz.copy()
    holes[:20], marked[:20], gridded[:20, :, 2] = 0, -9999, 65535
    strays[60, 60], strays[3, 3] = [1e4, 0, 2], [0, 30, 0.5]
    sums = {
        check_against_python(program, tiny_artifact, rgb, numbers, tmp_path)
        for numbers in (holes, marked, gridded, marked.astype(np.float64))
    }
    assert len(sums) == 1
    assert check_against_python(program, tiny_artifact, rgb, strays, tmp_path) not in sums
    marked[:60] = -9999
    printed = run(program, tiny_artifact, save_scan(tmp_path / "most.safetensors", rgb, marked))
    assert re.search(r"missing +\(-9999, -9999, -9999\) at 62.5 %", printed)


def test_missing_values_of_the_fit_and_of_the_user(
    program: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    rgb, xyz = make_arrays(6)
    few = xyz.copy()
    point = (0.0125, 0.0126, 0.4765)  # within the part, at too few pixels to be found
    few[45:48, 44:47] = point
    value = MissingValue(point, 0.1, 3)
    record = MissingRecord((value, MissingValue((None, None, -7.0), 0.1, 3)), 0.1)
    known = rewritten(tiny_artifact, tmp_path / "known", missing_values=record)
    found = check_against_python(program, known, rgb, few, tmp_path)
    assert found != check_against_python(program, tiny_artifact, rgb, few, tmp_path)
    scan = save_scan(tmp_path / "scan.safetensors", rgb, few)
    expected = load(tiny_artifact).infer(rgb, few, missing=0.0126).image_score
    assert load(known).infer(rgb, few).image_score == expected
    printed = run(program, tiny_artifact, scan, "--missing", "0.0126")
    assert float(field(printed, "score")) == pytest.approx(expected, rel=1e-4)
    assert "--missing is 'x'" in run(program, tiny_artifact, scan, "--missing", "x", code=REFUSED)


def test_an_artifact_of_schema_4_still_runs(
    program: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(tiny_artifact, tmp_path / "old")
    content = json.loads((old / MANIFEST_FILE).read_text())
    del content["missing_values"], content[DIGEST_KEY]
    write_manifest({**content, "schema": 4}, old)
    assert "the same answer" in run(program, old)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("rgb.onnx", lambda data: data[:-1] + b"x", "rgb.onnx has been changed"),
        ("points.onnx", lambda data: data[:-1], "points.onnx has been changed"),
        ("tensors.safetensors", None, "the file tensors.safetensors is missing"),
        ("manifest.json", None, "has no manifest.json"),
        ("manifest.json", lambda data: data[:100], "not a readable manifest"),
        ("manifest.json", lambda data: data.replace(b'"quantile": 0.99', b'"quantile": 0.98'),
         "the manifest has been changed"),
        ("manifest.json", lambda data: json.dumps({**json.loads(data), "schema": 99}).encode(),
         "has schema 99, this program reads"),
        ("manifest.json", lambda data: json.dumps({**json.loads(data), "schema": 1}).encode(),
         "fit the detector again"),
    ],
)  # fmt: skip
def test_a_damaged_artifact_is_refused(
    program: Path, tiny_artifact: Path, tmp_path: Path, name: str, damage: Any, message: str
) -> None:
    artifact = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    if damage is None:
        (artifact / name).unlink()
    else:
        (artifact / name).write_bytes(damage((artifact / name).read_bytes()))
    assert message in run(program, artifact, code=REFUSED)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("value", (math.nan, math.inf, -math.inf, "1.5", True, None, [1.5], 10**400)),
        ("quantile", (math.nan, "0.99", -0.01, 1.01)),
        ("num_scans", (math.nan, "4", True, 0, -4, 1.5, 2**64 - 1)),
    ],
)
def test_a_damaged_threshold_is_refused(
    program: Path, tiny_artifact: Path, tmp_path: Path, key: str, values: tuple[Any, ...]
) -> None:
    artifact = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    for value in values:
        rewrite_manifest(artifact, lambda content, it=value: content["threshold"].update({key: it}))
        printed = run(program, artifact, code=REFUSED)
        assert "copy the artifact again or fit it again" in printed, value
    rewrite_manifest(artifact, lambda content: content["threshold"].pop(key))
    assert key in run(program, artifact, code=REFUSED)


def test_links_and_files_that_nobody_listed_are_refused(
    program: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    linked = Path(shutil.copytree(tiny_artifact, tmp_path / "linked"))
    (linked / "rgb.onnx").unlink()
    (linked / "rgb.onnx").symlink_to(tiny_artifact / "rgb.onnx")
    assert "rgb.onnx is a symbolic link" in run(program, linked, code=REFUSED)
    added = Path(shutil.copytree(tiny_artifact, tmp_path / "added"))
    (added / ".DS_Store").touch()
    run(program, added)
    (added / "weights.bin").touch()
    assert "weights.bin is not in the manifest" in run(program, added, code=REFUSED)


def test_parts_that_do_not_fit_are_refused(
    program: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    tensors = read_artifact(tiny_artifact).tensors()
    output = tensors["rotated.rgb_to_point.weight"]
    for changes, message in (
        (
            {"parameters": replace(TINY_PARAMETERS, num_groups=25).to_manifest()},
            "parameters need (1, 25, 384)",
        ),
        (
            {"parameters": {**TINY_PARAMETERS.to_manifest(), "smoothing": "x"}},
            "one of boxes53, sigma4",
        ),
        (
            {"family": "m3dm", "graphs": {"rgb": read_artifact(tiny_artifact).graph_path("rgb")}},
            "family m3dm; this program runs the family cfm only",
        ),
        (
            {"method": "cfm-fpfh", "parameters": TOKEN_PARAMETERS.to_manifest()},
            "method cfm-fpfh, which compares colours with fpfh; this program runs the variants "
            "with point groups only (cfm, cfm-m, cfm-s, cfm-t)",
        ),
        ({"family": "btf", "graphs": {}}, "family btf; this program runs the family cfm only"),
        ({"family": "mean_colour"}, "family mean_colour; this program runs the family cfm only"),
        (
            {"tensors": {**tensors, "rotated.rgb_to_point.weight": output[:-1]}},
            "rotated.rgb_to_point.weight is F32 (5, 7); it must be F32 (6, 7)",
        ),
        ({"tensors": {k: v for k, v in tensors.items() if "group_bias" not in k}}, "group_bias"),
        (
            {"missing_values": MissingRecord((MissingValue((None, None, None), 0.1),))},
            "a missing value without a number would take away every pixel",
        ),
    ):
        artifact = rewritten(tiny_artifact, tmp_path / "artifact", **changes)
        assert message in run(program, artifact, code=REFUSED)


def test_scans_that_cannot_be_run_are_refused(
    program: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    rgb, xyz = make_arrays()
    whole = save_scan(tmp_path / "whole.safetensors", rgb, xyz).read_bytes()
    scan = tmp_path / "scan.safetensors"

    def refusal(content: bytes) -> str:
        scan.write_bytes(content)
        return run(program, tiny_artifact, scan, code=REFUSED)

    for length in (0, 7, 8, 60, len(whole) // 2, len(whole) - 1):
        assert "is not a readable safetensors file" in refusal(whole[:length])
    assert "is not a readable safetensors file" in refusal(b"\xff" * 8 + whole[8:])
    assert "is not a readable safetensors file" in refusal(
        whole.replace(b"[96,96,3]", b"[96,97,3]")
    )
    for arrays, message in (
        ((rgb, np.zeros_like(xyz)), "0 foreground points"),
        ((rgb, np.full_like(xyz, np.nan)), "0 foreground points"),
        ((rgb[:20], xyz[:20]), "20x96 pixels"),
        ((rgb[:50], xyz), "registered pixel by pixel"),
        ((rgb.astype(np.float32), xyz), "rgb is F32"),
        ((rgb, xyz[..., :2]), "xyz is F32 of shape (96, 96, 2)"),
        ((rgb, xyz * 1000), "check the unit"),
    ):
        assert message in refusal(save_scan(scan, *arrays).read_bytes())
    safetensors.numpy.save_file({"rgb": rgb}, scan)
    assert "has no tensor 'xyz' (it has: rgb)" in run(program, tiny_artifact, scan, code=REFUSED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: mmad_fast_infer"),
        (["nowhere"], "no such folder"),
        (["{artifact}", "nowhere.safetensors"], "no such file"),
        (["{artifact}", "--threads", "0"], "--threads is '0'"),
        (["{artifact}", "--frobnicate"], "there is no option --frobnicate"),
        (["{artifact}", "--map"], "--map needs a value"),
        (["{artifact}", "--map", "{artifact}/no/folder.safetensors"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_answered(
    program: Path, tiny_artifact: Path, arguments: list[str], message: str
) -> None:
    given = [argument.format(artifact=tiny_artifact) for argument in arguments]
    done = subprocess.run([program, *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == REFUSED
    assert message in done.stderr
