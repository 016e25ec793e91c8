"""Engine sets: whole or not at all, verified, and built by short scripts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mmad_fast.backbones import build_rgb_backbone
from mmad_fast.engines import open_graph
from mmad_fast.engines.tensorrt_library import library_refusal
from mmad_fast.errors import ArtifactError, EmptyScanError, InvalidInputError, WeightsError
from mmad_fast.export.backbone_cut import BackboneCut, CutGraph, export_cut
from mmad_fast.export.engine_set import (
    EMBEDDER_FILE,
    KIND,
    build_engine_set,
    calibration_inputs,
    read_engine_set,
)
from mmad_fast.export.export_request import ExportRequest
from mmad_fast.folder_files import FolderFiles
from mmad_fast.methods.family import get_recipe
from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding
from mmad_fast.preprocess import prepare
from mmad_fast.scan import Scan
from mmad_fast.whole_folder import write_manifest

SCRIPTS = Path(__file__).parents[2] / "export"
SMALL = BackboneCut("dinov2-vits14", 1)
POINTS = BackboneCut.point_mae((0,))
MANIFEST = "manifest.json"
RANDOM = {"rgb_weights": "random", "point_weights": "random"}


def onnx_request(precision: str = "fp32") -> ExportRequest:
    return ExportRequest.of(to="onnx", precision=precision, sms=(), batch=1)


@pytest.fixture(scope="module")
def engine_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sets") / "set"
    requests = [onnx_request(), onnx_request("fp16")]
    return build_engine_set(output, [SMALL, POINTS], requests, **RANDOM).path


def test_a_cut_has_a_name_and_a_graph() -> None:
    assert (SMALL.name, SMALL.graph) == ("dinov2-vits14-l1", "rgb")
    point = BackboneCut.point_mae([1, 2, 3])
    assert (point.name, point.graph, point.num_blocks) == ("point-mae-b1-2-3", "points", 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BackboneCut("dino-vitb8", 0), "after 0 blocks cannot be had: it has 12; choose 1"),
        (lambda: BackboneCut("dino-vitb8", 13), "after 13 blocks cannot be had"),
        (lambda: BackboneCut("dino-vitb9", 1), "there is no RGB backbone 'dino-vitb9'; known are"),
        (lambda: BackboneCut.point_mae([]), r"the fetched blocks of Point-MAE are \(\)"),
        (lambda: BackboneCut.point_mae([3, 1]), "must be ascending block numbers from 0 to 11"),
        (lambda: BackboneCut.point_mae([-1, 1]), "must be ascending block numbers"),
        (lambda: BackboneCut.point_mae([12]), "after 13 blocks cannot be had"),
    ],
)
def test_a_cut_that_cannot_be_had_is_refused(make: object, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        make()


def test_an_engine_set_says_what_is_in_it(engine_set: Path) -> None:
    read = read_engine_set(engine_set)
    names = [(engine.graph, engine.precision, engine.files[0]) for engine in read.engines]
    assert names == [
        ("rgb", "fp32", "dinov2-vits14-l1.fp32.onnx"),
        ("rgb", "fp16", "dinov2-vits14-l1.fp16.onnx"),
        ("points", "fp32", "point-mae-b0.fp32.onnx"),
        ("points", "fp16", "point-mae-b0.fp16.onnx"),
    ]
    single, half = read.engines[:2]
    for engine in read.engines:
        assert engine.size_bytes == (engine_set / engine.files[0]).stat().st_size
    assert 0.45 < half.size_bytes / single.size_bytes < 0.55
    assert single.parameters == half.parameters
    # 784 + 1 tokens through q, k, v and out (4 C^2), the MLP (8 C^2) and attention (2 T C), C=384.
    products = 785 * (12 * 384**2 + 2 * 785 * 384) + 784 * 3 * 14**2 * 384
    assert single.multiply_adds == products
    assert read.weights["dinov2-vits14"] == {"kind": "random", "detail": "seed 0", "sha256": None}
    kept = {MANIFEST, EMBEDDER_FILE, *(name for engine in read.engines for name in engine.files)}
    assert {file.name for file in engine_set.iterdir()} == kept
    assert str(engine_set.parent) not in (engine_set / MANIFEST).read_text()


def test_an_engine_gives_what_torch_gives(engine_set: Path) -> None:
    import torch

    network = build_rgb_backbone("dinov2-vits14", num_layers=1, weights="random")
    image = np.random.default_rng(0).standard_normal((1, 3, 392, 392), np.float32)
    expected = network(torch.from_numpy(image)).numpy()
    file = read_engine_set(engine_set).engines[0].files[0]
    tokens = open_graph(engine_set / file).run({"image": image})["tokens"]
    np.testing.assert_allclose(tokens, expected, atol=1e-4 * np.abs(expected).max())


def test_the_embedder_makes_the_tokens_of_the_point_engine(engine_set: Path) -> None:
    arrays = safetensors.numpy.load_file(engine_set / EMBEDDER_FILE)
    embedder = EmbedderWeights.from_tensors(arrays, "")
    groups = np.random.default_rng(0).normal(0, 0.01, (1024, 8, 3)).astype(np.float32)
    tokens = point_embedding(groups, embedder)[None]
    centers = np.zeros((1, 1024, 3), np.float32)
    file = read_engine_set(engine_set).engines[2].files[0]
    features = open_graph(engine_set / file).run({"tokens": tokens, "centers": centers})["features"]
    assert features.shape == (1, 1024, 384)
    assert np.isfinite(features).all()


def test_a_changed_engine_is_found(engine_set: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in engine_set.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    read_engine_set(copy)
    graph = copy / "point-mae-b0.fp16.onnx"
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"point-mae-b0\.fp16\.onnx has been changed .* again"):
        read_engine_set(copy)
    read_engine_set(copy, verify=False)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["engines"][0]["precision"] = "fp16"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="has been changed since it was written"):
        read_engine_set(copy, verify=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda content: content.update(embedder="../x"),
            "embedder is '../x'; it must be a file's name",
        ),
        (lambda content: content["engines"][0].update(files=[]), "files is .* list of 1"),
        (lambda content: content["engines"][0].pop("files"), "wrong fields .missing: ..files"),
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_refused(
    engine_set: Path, tmp_path: Path, change: Callable[[dict], object], words: str
) -> None:
    copy = shutil.copytree(engine_set, tmp_path / "copy")
    content = FolderFiles(copy, KIND).manifest()
    change(content)
    write_manifest(content, copy)
    with pytest.raises(ArtifactError, match=words):
        read_engine_set(copy)


def test_an_artifact_is_no_engine_set(tiny_artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="something else than an engine set"):
        read_engine_set(tiny_artifact)
    with pytest.raises(ArtifactError, match="holds other files than those of an engine set"):
        build_engine_set(tiny_artifact, [SMALL], [onnx_request()], **RANDOM)


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        build_engine_set(
            tmp_path / "new" / "set", [POINTS], [onnx_request()], progress=stop, **RANDOM
        )
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_built_is_refused_before_anything_is(tmp_path: Path) -> None:
    output, request = tmp_path / "set", onnx_request()
    with pytest.raises(InvalidInputError, match="the cuts to build are none; at least one"):
        build_engine_set(output, [], [request], **RANDOM)
    with pytest.raises(InvalidInputError, match="dinov2-vits14-l1, dinov2-vits14-l1; at least one"):
        build_engine_set(output, [SMALL, SMALL], [request], **RANDOM)
    with pytest.raises(InvalidInputError, match="the exports to build are .* none twice"):
        build_engine_set(output, [SMALL], [request, request], **RANDOM)
    with pytest.raises(InvalidInputError, match="int8 and fp8 need nominal scans .*--calibration"):
        build_engine_set(output, [SMALL], [onnx_request("int8")], **RANDOM)
    with pytest.raises(WeightsError, match="does not exist"):
        build_engine_set(
            output, [SMALL, POINTS], [request], rgb_weights="random", point_weights=tmp_path / "no"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def point_graph(tmp_path_factory: pytest.TempPathFactory) -> CutGraph:
    return export_cut(POINTS, tmp_path_factory.mktemp("cut"), weights="random")


def scan_of(arrays: Sequence[np.ndarray], name: str = "scan") -> Scan:
    return Scan.from_arrays(*arrays, unit="m", name=name)


def test_calibration_takes_what_the_graphs_get(point_graph: CutGraph, scan_arrays) -> None:
    empty = (scan_arrays[0], np.zeros_like(scan_arrays[1]))
    scans = [scan_of(empty, "empty"), scan_of(scan_arrays)]
    (inputs,) = calibration_inputs(point_graph, scans)
    assert {name: array.shape for name, array in inputs.items()} == {
        "tokens": (1, 1024, 384),
        "centers": (1, 1024, 3),
    }
    (image,) = calibration_inputs(CutGraph(SMALL, point_graph.path), scans[1:])
    assert image["image"].shape == (1, 3, 392, 392)
    with pytest.raises(EmptyScanError, match="none of the 1 calibration scans has enough"):
        calibration_inputs(point_graph, scans[:1])


def test_calibration_prepares_scans_as_the_detectors_do(point_graph: CutGraph, scan_arrays) -> None:
    """The default method's recipe keeps the background of the picture, M3DM's blackens it."""
    graph, scans = CutGraph(SMALL, point_graph.path), [scan_of(scan_arrays)]
    (unasked,) = calibration_inputs(graph, scans)
    for name, is_same in (("cfm", True), ("m3dm", False)):
        recipe = get_recipe(name)
        (found,) = calibration_inputs(graph, scans, recipe=recipe)
        expected = prepare(scans[0], recipe, rgb_size=found["image"].shape[-1]).rgb[None]
        np.testing.assert_array_equal(found["image"], expected)
        assert np.array_equal(found["image"], unasked["image"]) == is_same


def test_int8_engines_are_calibrated_by_scans(tmp_path: Path, scan_arrays) -> None:
    requests = [onnx_request(), onnx_request("int8")]
    built = build_engine_set(
        tmp_path / "set", [POINTS], requests, calibration=[scan_of(scan_arrays)], **RANDOM
    )
    plain, rounded = built.engines
    assert (plain.calibration_scans, rounded.calibration_scans) == (0, 1)
    assert rounded.multiply_adds == plain.multiply_adds


def test_a_tensorrt_engine_has_its_layers_in_the_manifest(tmp_path: Path) -> None:
    if (reason := library_refusal("tensorrt-rtx")) is not None:
        pytest.skip(reason)
    request = ExportRequest.of(to="tensorrt-rtx", precision="fp16", sms=[89], batch=1)
    built = build_engine_set(tmp_path / "set", [POINTS], [request], cache=False, **RANDOM)
    (engine,) = built.engines
    assert engine.files == ["point-mae-b0.fp16.sm89.tensorrt-rtx.engine"]
    assert engine.sms == [89]
    assert engine.layers["fused_attention"] == 1
    assert engine.layers["separate_softmax"] == 0
    assert built.embedder == built.path / EMBEDDER_FILE


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.own_process
@pytest.mark.parametrize("name", ["dino.py", "point_mae.py", "engine_set.py"])
def test_a_script_explains_itself(name: str) -> None:
    done = script(name, "--help")
    assert done.returncode == 0
    for option in ("--to", "--precision", "--sm", "--batch", "--calibration", "--output"):
        assert option in done.stdout


@pytest.mark.own_process
@pytest.mark.parametrize(
    ("name", "arguments", "code", "words"),
    [
        ("dino.py", ["--layers", "13", "--to", "onnx"], 2, "13 blocks cannot be had: it has 12"),
        ("dino.py", ["--to", "tensorrt-rtx", "--sm", "87"], 2, "does not build for 87"),
        ("dino.py", ["--to", "onnx", "--sm", "89"], 2, "leave --sm out, or add tensorrt-rtx"),
        ("dino.py", ["--sm", "x"], 2, "must be numbers with commas, without the dot"),
        (
            "point_mae.py",
            ["--layers", "1;2", "--to", "onnx"],
            2,
            "must be one or more numbers with commas, e.g. 1,2,3",
        ),
        ("point_mae.py", ["--to", "onnx", "--batch", "3,1"], 2, "batch"),
        ("point_mae.py", ["--to", "onnx", "--weights", "no.pth"], 1, "no.pth does not exist"),
    ],
)
def test_wrong_arguments_are_named(
    name: str, arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    done = script(name, *arguments, "--output", str(tmp_path / "set"))
    assert done.returncode == code
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.own_process
def test_a_script_builds_what_it_is_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "set"
    done = script(
        *("dino.py", "--backbone", "dinov2-vits14", "--layers", "1", "--to", "onnx"),
        *("--precision", "fp16", "--weights", "random", "--output", str(output)),
    )
    assert done.returncode == 0, done.stderr
    assert "dinov2-vits14-l1.fp16.onnx" in done.stdout
    assert "seeded random weights; the features mean nothing" in done.stderr
    assert len(read_engine_set(output).engines) == 1


@pytest.mark.own_process
def test_reading_an_engine_set_needs_neither_torch_nor_onnx() -> None:
    program = (
        "import sys; import mmad_fast.export.engine_set; "
        "print(sorted({'torch', 'onnx', 'onnxscript', 'tensorrt_rtx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
