"""Every engine: torch-free answers of a graph, its errors, its threads; what the table refuses."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import make_arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import mmad_fast
from mmad_fast import engines
from mmad_fast.engines import (
    ENGINES,
    check_engine,
    engine_refusal,
    engine_version,
    onnx_runtime,
    open_graph,
)
from mmad_fast.errors import ArtifactError, BackendUnavailableError, InvalidInputError

WEIGHT = np.random.default_rng(0).normal(size=(48, 33)).astype(np.float32)


def save_product(path: Path, *, rows: int | str = 5, columns: int | str = 48) -> Path:
    """The graph y (rows, 33) = x (rows, columns) @ WEIGHT + 1, and z = 2 y."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "one"], ["y"]),
        helper.make_node("Add", ["y", "y"], ["z"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {"x": (rows, columns), "y": (rows, 33), "z": (rows, 33)}.items()
    ]
    constants = {"weight": WEIGHT, "one": np.ones(1, np.float32)}
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], initializers)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


GPU_ENGINES = [
    name for name in ENGINES if name.startswith("onnxruntime-") or "onnx" not in ENGINES[name].reads
]


@pytest.fixture(params=[name for name in ENGINES if name not in GPU_ENGINES])
def engine(request: pytest.FixtureRequest) -> str:
    reason = engine_refusal(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_product(tmp_path / "product.onnx")


def inputs(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(5, 48)).astype(np.float32)


@pytest.mark.parametrize("num_threads", [None, 1, 2])
def test_answers_in_float32(engine: str, path: Path, num_threads: int | None) -> None:
    graph = open_graph(path, engine=engine, num_threads=num_threads)
    assert graph.input_shapes == {"x": (5, 48)}
    assert graph.output_shapes == {"y": (5, 33), "z": (5, 33)}
    answer = graph.run({"x": inputs(1)})
    expected = inputs(1).astype(np.float64) @ WEIGHT.astype(np.float64) + 1
    # bfloat16, which an engine may choose by itself, is off by about 1e-2 here.
    np.testing.assert_allclose(answer["y"], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(answer["z"], 2 * expected, rtol=0, atol=2e-5)
    assert answer["y"].dtype == np.float32


def test_inputs_of_any_layout(engine: str, path: Path) -> None:
    graph = open_graph(path, engine=engine)
    expected = graph.run({"x": inputs(2)})["y"]
    strided = np.asfortranarray(inputs(2))
    read_only = inputs(2)
    read_only.flags.writeable = False
    for array in (strided, read_only, inputs(2).astype(np.float64)):
        np.testing.assert_array_equal(graph.run({"x": array})["y"], expected)


def test_an_answer_outlives_the_next_run(engine: str, path: Path) -> None:
    graph = open_graph(path, engine=engine)
    first = graph.run({"x": inputs(3)})["y"]
    kept = first.copy()
    graph.run({"x": inputs(4)})
    np.testing.assert_array_equal(first, kept)


def test_threads_get_their_own_answers(engine: str, path: Path) -> None:
    graph = open_graph(path, engine=engine, num_threads=2)
    expected = [graph.run({"x": inputs(seed)})["y"] for seed in range(20)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            answers = pool.map(lambda seed: graph.run({"x": inputs(seed)})["y"], range(20))
            for answer, wanted in zip(answers, expected, strict=True):
                np.testing.assert_array_equal(answer, wanted)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, r"product\.onnx: got inputs \[\], the graph needs \['x'\]"),
        ({"x": inputs(0), "w": inputs(0)}, r"got inputs \['w', 'x'\]"),
        ({"x": inputs(0)[:4]}, r"input 'x' has shape \(4, 48\), the graph needs \(5, 48\)"),
    ],
)
def test_wrong_inputs_are_named(engine: str, path: Path, wrong: dict, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        open_graph(path, engine=engine).run(wrong)


def test_a_missing_file_and_one_that_is_no_graph(engine: str, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    for name in ("none.onnx", "bad.onnx"):
        with pytest.raises(ArtifactError, match=rf"{name}: .* [\d.]+ cannot load the graph"):
            open_graph(tmp_path / name, engine=engine)


def test_dynamic_shapes_are_refused(engine: str, tmp_path: Path) -> None:
    path = save_product(tmp_path / "dynamic.onnx", columns="columns")
    words = r"'x' has the dynamic shape \(5, 'free'\); only the batch .*export it again"
    with pytest.raises(ArtifactError, match=words):
        open_graph(path, engine=engine)


def test_a_free_batch_is_one(engine: str, tmp_path: Path) -> None:
    graph = open_graph(save_product(tmp_path / "batch.onnx", rows="batch"), engine=engine)
    assert graph.input_shapes == {"x": (1, 48)}
    assert graph.output_shapes == {"y": (1, 33), "z": (1, 33)}
    answer = graph.run({"x": inputs(1)[:1]})
    expected = inputs(1)[:1].astype(np.float64) @ WEIGHT.astype(np.float64) + 1
    np.testing.assert_allclose(answer["y"], expected, rtol=0, atol=1e-5)
    with pytest.raises(InvalidInputError, match=r"shape \(5, 48\), the graph needs \(1, 48\)"):
        graph.run({"x": inputs(1)})


@pytest.mark.parametrize("num_threads", [0, 1025, 1.5])
def test_a_number_of_threads_that_cannot_be(engine: str, path: Path, num_threads: float) -> None:
    with pytest.raises(InvalidInputError, match="num_threads"):
        open_graph(path, engine=engine, num_threads=num_threads)


def test_a_detector_answers_as_recorded(engine: str, tiny_artifact: Path) -> None:
    detector = mmad_fast.load(tiny_artifact, engine=engine)
    assert detector.replay_golden().agrees
    rgb, xyz = make_arrays(3)
    expected = mmad_fast.load(tiny_artifact).infer(rgb, xyz).image_score
    assert detector.infer(rgb, xyz).image_score == pytest.approx(expected, rel=1e-4)


def test_each_engine_says_its_version(engine: str) -> None:
    assert engine_version(engine)[0].isdigit()


def test_an_engine_that_is_not_installed_says_how_to_get_it(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(engines, "import_module", fail)
    words = (
        r"engine 'openvino' cannot run here: openvino cannot be imported \(No module .*\); "
        r"install with: pip install 'mmad-fast\[openvino\]'"
    )
    for function in (
        lambda: check_engine("openvino", "cpu"),
        lambda: mmad_fast.load(tiny_artifact, engine="openvino"),
    ):
        with pytest.raises(BackendUnavailableError, match=words):
            function()


def test_openvino_reports_to_nobody() -> None:
    reason = engine_refusal("openvino")
    if reason is not None:
        pytest.skip(reason)
    code = (
        "import sys; from mmad_fast.engines import engine_refusal; "
        "assert engine_refusal('openvino') is None; "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_buffers_of_the_caller(path: Path) -> None:
    graph = onnx_runtime.OnnxRuntimeEngine(path)
    x = inputs(5)
    outputs = {"y": np.full((6, 33), np.nan, np.float32), "z": np.full((6, 33), np.nan, np.float32)}
    graph.run_bound({"x": x.ctypes.data}, {name: y.ctypes.data for name, y in outputs.items()})
    for name, expected in graph.run({"x": x}).items():
        np.testing.assert_array_equal(outputs[name][:5], expected)
        assert np.isnan(outputs[name][5]).all()  # behind the graph's shape nothing is written


def test_runs_on_buffers_take_turns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CUDA stream they share cuDNN's handle, which serves one thread at a time."""
    graph = onnx_runtime.OnnxRuntimeEngine(path)
    session, running, most = graph._session, [], []

    class Watched:
        io_binding = staticmethod(session.io_binding)

        def run_with_iobinding(self, *arguments: object) -> None:
            running.append(1)
            time.sleep(0.01)
            most.append(len(running))
            session.run_with_iobinding(*arguments)
            running.pop()

    monkeypatch.setattr(graph, "_session", Watched())
    x, y, z = inputs(5), np.empty((4, 5, 33), np.float32), np.empty((4, 5, 33), np.float32)
    with ThreadPoolExecutor(4) as pool:
        for answered in [
            pool.submit(
                graph.run_bound,
                {"x": x.ctypes.data},
                {"y": y[i].ctypes.data, "z": z[i].ctypes.data},
            )
            for i in range(4)
        ]:
            answered.result()
    assert most == [1] * 4
    expected = session.run(["y"], {"x": x})[0]
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


@pytest.mark.parametrize(("given", "written"), [({}, ("y", "z")), ({"x": 0}, ("y",))])
def test_buffers_that_are_missing(path: Path, given: dict[str, int], written: tuple) -> None:
    graph = onnx_runtime.OnnxRuntimeEngine(path)
    with pytest.raises(
        InvalidInputError, match=r"got buffers \[.*the graph needs \['x', 'y', 'z'\]"
    ):
        graph.run_bound(given, dict.fromkeys(written, 0))


def test_a_build_without_the_device_says_what_it_has(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnx_runtime.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    words = r"has no CUDAExecutionProvider \(it has CPUExecutionProvider\).*onnxruntime-gpu"
    with pytest.raises(BackendUnavailableError, match=words):
        mmad_fast.load(tiny_artifact, device="cuda")


def test_a_session_that_fell_back_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FallenBack:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnx_runtime.onnxruntime, "InferenceSession", FallenBack)
    with pytest.raises(
        BackendUnavailableError,
        match="asked for CUDAExecutionProvider and runs on CPUExecutionProvider: the provider did",
    ):
        onnx_runtime.OnnxRuntimeEngine(path, device="cuda")


def test_only_the_default_engine_is_imported_by_a_detector(tiny_artifact: Path) -> None:
    code = (
        f"import sys, mmad_fast; mmad_fast.load({str(tiny_artifact)!r}); "
        "print('openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
