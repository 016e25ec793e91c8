"""Every engine: torch-free answers of a graph, its errors, its threads; what the table refuses."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import make_arrays
from engines.product_graph import WEIGHT, inputs, save_product

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

NO_FALLBACK = "session.disable_cpu_ep_fallback"


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


SIGNALS = """
import signal, sys, threading
from pathlib import Path
from mmad_fast.engines import open_graph

def opened():
    return open_graph(Path(sys.argv[2]), engine=sys.argv[1], num_threads=1)

signal.signal(signal.SIGINT, lambda number, frame: print(f"handled {where}", flush=True))
graphs = [opened(), opened()]
where = "with both"
signal.raise_signal(signal.SIGINT)
graphs.pop(0)
where = "with the newer"
signal.raise_signal(signal.SIGINT)
graphs.pop()
where = "with none"
signal.raise_signal(signal.SIGINT)
graphs.append(opened())
thread = threading.Thread(target=graphs.clear)
thread.start()
thread.join()
where = "with one dropped by a thread"
signal.raise_signal(signal.SIGINT)
"""


def test_signals_are_handled_whichever_graphs_are_gone(engine: str, path: Path) -> None:
    command = [sys.executable, "-c", SIGNALS, engine, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "handled with both",
        "handled with the newer",
        "handled with none",
        "handled with one dropped by a thread",
    ]
    assert done.returncode == 0, done.stderr


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
        with pytest.raises(ArtifactError, match=f"{name}: cannot be loaded as a detector's graph"):
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


def test_an_error_of_our_own_is_not_blamed_on_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("cannot import name 'x'", name="mmad_fast.gpu.device_context")

    monkeypatch.setattr(engines, "import_module", fail)
    with pytest.raises(ImportError, match="cannot import name 'x'"):
        engine_refusal("tensorrt-rtx")


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


@pytest.mark.parametrize(
    ("engine", "device", "provider", "packages"),
    [
        ("onnxruntime", "cuda", "CUDAExecutionProvider", "onnxruntime-gpu"),
        ("onnxruntime-tensorrt", "cpu", "TensorrtExecutionProvider", "onnxruntime-gpu tensorrt"),
        ("onnxruntime-tensorrt", "cuda", "TensorrtExecutionProvider", "onnxruntime-gpu tensorrt"),
    ],
)
def test_a_build_without_the_provider_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch, engine: str, device: str, provider: str, packages: str
) -> None:
    monkeypatch.setattr(
        onnx_runtime.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    words = (
        rf"has no {provider} \(it has CPUExecutionProvider\); replace it: pip uninstall "
        rf"onnxruntime && pip install {packages}$"
    )
    with pytest.raises(BackendUnavailableError, match=words):
        check_engine(engine, device)


class FakeSession:
    """Stands in for a session on a GPU: what was asked for, and what it is told to answer."""

    asked: ClassVar[list[tuple[str, dict[str, str], bool]]]
    """Provider, its options, and whether the CPU may take what the provider does not know."""
    started: ClassVar[list[str] | None]
    leaves_nodes_to_cpu: ClassVar[bool]

    def __init__(self, path: str, settings: Any, *, providers: list, enable_fallback: int) -> None:
        ((provider, options),) = providers
        self._providers = [provider, "CPUExecutionProvider"]
        try:
            may_fall_back = settings.get_session_config_entry(NO_FALLBACK) != "1"
        except RuntimeError:  # it was not set
            may_fall_back = True
        self.asked.append((provider, options, may_fall_back))
        assert enable_fallback == 0
        if not may_fall_back and (self.leaves_nodes_to_cpu or self.started):
            words = "nodes are assigned to the default CPU EP, but fallback to CPU EP has been"
            raise onnx_runtime.status.Fail(words)

    def get_providers(self) -> list[str]:
        return self.started or self._providers

    def get_inputs(self) -> list:
        return []

    get_outputs = get_inputs


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeSession]:
    for name, value in {"asked": [], "started": None, "leaves_nodes_to_cpu": False}.items():
        monkeypatch.setattr(FakeSession, name, value, raising=False)
    monkeypatch.setattr(onnx_runtime.onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setenv("MMAD_FAST_CACHE", str(tmp_path / "cache"))
    return FakeSession


ON_A_GPU = [
    ({"device": "cuda"}, "CUDAExecutionProvider"),
    ({"provider": "tensorrt"}, "TensorrtExecutionProvider"),
    ({"device": "cuda", "provider": "tensorrt-rtx"}, "NvTensorRTRTXExecutionProvider"),
]


@pytest.mark.parametrize(("asked", "provider"), ON_A_GPU)
def test_all_of_the_graph_is_asked_of_the_provider(
    session: type[FakeSession], path: Path, asked: dict, provider: str
) -> None:
    onnx_runtime.OnnxRuntimeEngine(path, device_index=2, stream=0xABC, **asked)
    ((name, options, may_fall_back),) = session.asked
    assert (name, may_fall_back) == (provider, False)
    assert options["device_id"] == "2"
    assert options["user_compute_stream"] == str(0xABC)
    onnx_runtime.OnnxRuntimeEngine(path, **asked)
    assert "user_compute_stream" not in session.asked[1][1]
    assert all(isinstance(value, str) for value in options.values())


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimpleNamespace]]:
    """The GPUs of a plugin of ONNX Runtime that is installed, to be changed."""
    devices = [SimpleNamespace(ep_name="NvTensorRTRTXExecutionProvider", id=i) for i in range(2)]
    module = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.get_ep_name = lambda: "NvTensorRTRTXExecutionProvider"  # type: ignore[attr-defined]
    module.get_library_path = lambda: "plugin.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    runtime = onnx_runtime.onnxruntime
    cpu = SimpleNamespace(ep_name="CPUExecutionProvider")
    monkeypatch.setattr(runtime, "get_ep_devices", lambda: [cpu, *devices])
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    registered: list[tuple[str, str]] = []
    add = "register_execution_provider_library"
    monkeypatch.setattr(runtime, add, lambda *names: registered.append(names), raising=False)
    onnx_runtime._register_plugin.cache_clear()
    yield devices
    assert registered in ([], [("NvTensorRTRTXExecutionProvider", "plugin.so")])  # once at most
    onnx_runtime._register_plugin.cache_clear()


def test_a_plugin_brings_its_provider(
    plugin: list[SimpleNamespace],
    session: type[FakeSession],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added: list[tuple[list, dict[str, str]]] = []

    class Settings:
        def add_session_config_entry(self, key: str, value: str) -> None:
            added.append(([key], {key: value}))

        def add_provider_for_devices(self, devices: list, options: dict[str, str]) -> None:
            added.append((devices, options))

    class PluginSession(FakeSession):
        def __init__(self, path: str, settings: Any, *, enable_fallback: int) -> None:
            self._providers = ["NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnx_runtime.onnxruntime, "InferenceSession", PluginSession)
    monkeypatch.setattr(onnx_runtime, "session_options", lambda threads: Settings())
    for _ in range(2):
        assert engine_refusal("onnxruntime-tensorrt-rtx") is None
    onnx_runtime.OnnxRuntimeEngine(path, provider="tensorrt-rtx", device_index=1)
    assert added[0] == ([NO_FALLBACK], {NO_FALLBACK: "1"})
    (device,), options = added[1]
    assert device.id == 1
    assert set(options) == {"device_id", "nv_runtime_cache_path"}
    with pytest.raises(BackendUnavailableError, match="no CUDA device 2 for NvTensor.* finds 2"):
        onnx_runtime.OnnxRuntimeEngine(path, provider="tensorrt-rtx", device_index=2)


def test_a_plugin_that_cannot_be_used_says_why(
    plugin: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.clear()
    refusal = str(engine_refusal("onnxruntime-tensorrt-rtx"))
    assert refusal.startswith("onnxruntime-ep-nv-tensorrt-rtx finds no GPU that it can use; check")
    onnx_runtime._register_plugin.cache_clear()
    add = "register_execution_provider_library"

    def fail(*_: str) -> None:
        raise onnx_runtime.status.Fail("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(onnx_runtime.onnxruntime, add, fail)
    refusal = str(engine_refusal("onnxruntime-tensorrt-rtx"))
    assert "does not load (libcuda.so.1: cannot open shared object file); install NVIDIA" in refusal
    monkeypatch.delattr(onnx_runtime.onnxruntime, add)
    assert "takes no plugins; upgrade it" in str(engine_refusal("onnxruntime-tensorrt-rtx"))
    monkeypatch.delitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx")
    monkeypatch.setattr(onnx_runtime, "find_spec", lambda name: None)
    refusal = str(engine_refusal("onnxruntime-tensorrt-rtx"))
    assert refusal.endswith("install it: pip install onnxruntime-ep-nv-tensorrt-rtx")


def test_float32_stays_float32(session: type[FakeSession], path: Path) -> None:
    onnx_runtime.OnnxRuntimeEngine(path, device="cuda")
    onnx_runtime.OnnxRuntimeEngine(path, provider="tensorrt")
    assert session.asked[0][1]["use_tf32"] == "0"
    for precision in ("fp16", "bf16", "int8"):
        assert session.asked[1][1][f"trt_{precision}_enable"] == "0"


@pytest.mark.parametrize(
    ("provider", "option"),
    [("tensorrt", "trt_engine_cache_path"), ("tensorrt-rtx", "nv_runtime_cache_path")],
)
def test_what_tensorrt_compiles_is_kept_by_the_graphs_content(
    session: type[FakeSession], path: Path, tmp_path: Path, provider: str, option: str
) -> None:
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    other.write_bytes(path.read_bytes() + b"\x32\x01x")  # a doc_string
    for file in (path, path, other):
        onnx_runtime.OnnxRuntimeEngine(file, provider=provider)
    folders = [options[option] for _, options, _ in session.asked]
    assert folders[0] == folders[1] != folders[2]
    assert folders[0].startswith(str(tmp_path / "cache" / f"onnxruntime-{provider}"))


@pytest.mark.parametrize(("asked", "provider"), ON_A_GPU)
def test_a_provider_that_did_not_start_is_refused(
    session: type[FakeSession], path: Path, asked: dict, provider: str
) -> None:
    session.started = ["CPUExecutionProvider"]
    words = f"asked for {provider} and runs on CPUExecutionProvider: the provider did not start"
    with pytest.raises(BackendUnavailableError, match=words):
        onnx_runtime.OnnxRuntimeEngine(path, **asked)


def test_nodes_left_to_the_cpu_are_refused(session: type[FakeSession], path: Path) -> None:
    session.leaves_nodes_to_cpu = True
    words = "TensorrtExecutionProvider of ONNX Runtime .* does not know all operators"
    with pytest.raises(BackendUnavailableError, match=words):
        onnx_runtime.OnnxRuntimeEngine(path, provider="tensorrt")


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("name", ["none.onnx", "bad.onnx"])
def test_a_graph_that_cannot_be_read_is_said_before_tensorrt_starts(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match=f"{name}: cannot be loaded as a detector's graph"):
        onnx_runtime.OnnxRuntimeEngine(tmp_path / name, provider="tensorrt")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_the_real_session_refuses_a_provider_that_is_not_there(path: Path) -> None:
    if engine_refusal("onnxruntime-tensorrt") is None:
        pytest.skip("this build of ONNX Runtime has the provider")
    words = "asked for TensorrtExecutionProvider and runs on CPUExecutionProvider"
    with pytest.raises(BackendUnavailableError, match=words):
        onnx_runtime.OnnxRuntimeEngine(path, provider="tensorrt")


@pytest.mark.parametrize("name", [name for name in GPU_ENGINES if name.startswith("onnxruntime")])
def test_answers_of_a_gpu(name: str, path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    reason = engine_refusal(name)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("MMAD_FAST_CACHE", str(tmp_path / "cache"))
    graph = open_graph(path, engine=name)
    for seed in range(3):
        expected = inputs(seed).astype(np.float64) @ WEIGHT.astype(np.float64) + 1
        # TensorRT takes TF32 for float32 where it builds by itself.
        np.testing.assert_allclose(graph.run({"x": inputs(seed)})["y"], expected, atol=2e-2)


def test_only_the_default_engine_is_imported_by_a_detector(tiny_artifact: Path) -> None:
    code = (
        f"import sys, mmad_fast; mmad_fast.load({str(tiny_artifact)!r}); "
        "print('openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("kind", ["Sin", "Broadcast"])
def test_a_model_of_openvino_that_none_of_ours_is(kind: str, tmp_path: Path) -> None:
    reason = engine_refusal("openvino")
    if reason is not None:
        pytest.skip(reason)
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([1, 4], np.float32, name="x")
    side = np.array([2**20, 2**20])
    wide = ops.sin(x) if kind == "Sin" else ops.broadcast(ops.constant(np.float32(1)), side)
    y = ops.add(x, ops.reduce_max(wide, np.array([0, 1]), keep_dims=True))
    openvino.save_model(openvino.Model([y], [x]), tmp_path / "g.xml", compress_to_fp16=False)
    words = {
        "Sin": "operator 'Sin', which none of ours",
        "Broadcast": "more than 268435456 numbers",
    }
    with pytest.raises(ArtifactError, match=f"g.xml: cannot be loaded as .*{words[kind]}"):
        open_graph(tmp_path / "g.xml", engine="openvino")
