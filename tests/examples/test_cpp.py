"""examples/cpp beside Python. Building it takes about 25 s of one core."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import RGB_DIM, TINY_PARAMETERS, make_arrays
from numpy.typing import NDArray

from mmad_fast import load
from mmad_fast.artifact import read_artifact, write_artifact
from mmad_fast.methods.family import get_recipe

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
CANNOT_BE_HAD = 3
SAME, DIFFERS, REFUSED = 0, 1, 2


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("cmake", "make", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"building the C++ example needs {tool}, which is not on the PATH")
    folder = tmp_path_factory.mktemp("cpp")
    root, build = folder / "onnxruntime", folder / "build"
    got = subprocess.run(
        [SOURCE / "get_onnxruntime.sh", root, sys.executable],
        capture_output=True,
        text=True,
        timeout=180,
    )
    if got.returncode == CANNOT_BE_HAD:
        pytest.skip(f"no headers of ONNX Runtime: {got.stderr.strip().splitlines()[-1]}")
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
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "mmad_fast_infer"


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
    given = read_artifact(artifact)
    manifest = given.manifest
    arguments = {
        "method": manifest.method,
        "family": manifest.family,
        "preprocess": manifest.preprocess,
        "parameters": manifest.parameters,
        "threshold": manifest.threshold,
        "weights": manifest.weights,
        "graphs": {name: given.graph_path(name) for name in manifest.graphs},
        "tensors": given.tensors(),
        "golden": given.golden(),
    }
    return write_artifact(target, **{**arguments, **changes})


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


def scan_with_a_cluttered_rim() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A scan of two planes with three quarters of its rim on neither: few of the plane search's
    samples lie on one plane, so its random numbers decide what the background is."""
    rng = np.random.default_rng(2)
    rgb, xyz = make_arrays(2, size=110)
    xyz[:, 55:, 2] += 0.15
    is_rim = np.ones((110, 110), bool)
    is_rim[10:-10, 10:-10] = False
    clutter = is_rim & (rng.random((110, 110)) < 0.76)
    xyz[..., 2] += clutter * rng.uniform(0.01, 0.4, (110, 110))
    return rgb, xyz


def random_network(name: str, sizes: list[int]) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    layers = ["input", *(f"projection_{c}" for c in "abcdef"[: len(sizes) - 3]), "output"]
    tensors = {}
    for layer, dim_in, dim_out in zip(layers, sizes[:-1], sizes[1:], strict=True):
        tensors[f"{name}.{layer}.weight"] = rng.normal(0, 0.5, (dim_out, dim_in))
        tensors[f"{name}.{layer}.bias"] = rng.normal(0, 0.1, dim_out)
    return {key: tensor.astype(np.float32) for key, tensor in tensors.items()}


def test_the_plane_search_draws_numpys_random_numbers(
    program: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    rgb, xyz = scan_with_a_cluttered_rim()
    answers = set()
    for seed in (0, 1, 4, 2**33 + 7, 2**63 - 1):
        recipe = replace(
            get_recipe("cfm"), seed=seed, min_inlier_fraction=0.05, min_rim_coverage=0.05
        )
        artifact = rewritten(tiny_artifact, tmp_path / "artifact", preprocess=recipe.to_dict())
        answers.add(check_against_python(program, artifact, rgb, xyz, tmp_path))
    assert len(answers) > 2  # so the numbers decide


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
        **random_network("rgb_to_rgb", [RGB_DIM, 11, 9, 7, 5, RGB_DIM]),
    }
    artifact = rewritten(
        tiny_artifact,
        tmp_path / "artifact",
        preprocess=get_recipe(recipe).to_dict(),
        parameters=replace(TINY_PARAMETERS, **changes).to_manifest(),
        tensors=tensors,
        threshold={"value": 1e-6} if recipe == "m3dm" else None,
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


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("rgb.onnx", lambda data: data[:-1] + b"x", "rgb.onnx has been changed"),
        ("points.onnx", lambda data: data[:-1], "bytes, the manifest says"),
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


def test_parts_that_do_not_fit_are_refused(
    program: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    tensors = read_artifact(tiny_artifact).tensors()
    output = tensors["rgb_to_point.output.weight"]
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
            {"tensors": {**tensors, "rgb_to_point.output.weight": output[:-1]}},
            "has a weight F32 (5, 7) and a bias F32 (6)",
        ),
        ({"tensors": {k: v for k, v in tensors.items() if "group_bias" not in k}}, "group_bias"),
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
