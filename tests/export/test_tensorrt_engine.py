"""Engines: really built by TensorRT-RTX, which needs no GPU; TensorRT's path with a stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from export.attention_graphs import DIM, TOKENS, transformer
from export.fake_tensorrt import ENGINE, FakeTensorRt
from onnx import TensorProto, helper

from export import fake_tensorrt
from mmad_fast.engines.tensorrt_library import LIBRARIES, library_refusal
from mmad_fast.errors import ArtifactError, BackendUnavailableError, InvalidInputError
from mmad_fast.export import tensorrt_engine
from mmad_fast.export.batch import Batch
from mmad_fast.export.engine_cache import EngineCache
from mmad_fast.export.engine_layers import summarize
from mmad_fast.export.tensorrt_engine import BuiltEngine, build_engine
from mmad_fast.export.tensorrt_messages import EngineBuildError

RTX = LIBRARIES["tensorrt-rtx"]
PRECISIONS = tuple(RTX.oldest_sm)
KERNELS_PER_BLOCK = {"fp32": 17, "fp16": 10, "bf16": 10, "int8": 12, "fp8": 11}
"""At most, of the two-block transformer with its ends; TensorRT-RTX 1.7.1 needs 1 to 2 less. A
storm of reformats would be many more."""


@pytest.fixture(scope="module")
def rtx() -> None:
    reason = library_refusal("tensorrt-rtx")
    if reason is not None:
        pytest.skip(reason)


def build(model: onnx.ModelProto, path: Path, **changes: Any) -> BuiltEngine:
    options = {"target": "tensorrt-rtx", "precision": "fp16", "sms": (89,)}
    return build_engine(model, path, **{**options, **changes})  # type: ignore[arg-type]


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_of_each_precision(
    precision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "engine"
    built = build(transformer(precision), path, precision=precision)
    assert only_file(tmp_path) == path
    assert path.stat().st_size > 100_000
    assert built.library.startswith("tensorrt-rtx 1.")
    assert (built.sms, built.from_cache) == ((89,), False)
    assert 0 < built.build_s < 60
    summary = summarize(built.layers)
    is_fused = precision != "fp32"
    assert (summary.fused_attention, summary.separate_softmax) == ((2, 0) if is_fused else (0, 2))
    assert summary.gemms == 8 + (0 if is_fused else 4)
    assert summary.kernels_per_block <= KERNELS_PER_BLOCK[precision]
    assert summary.reformats <= (2 if is_fused else 12)
    assert built.layers[0].inputs[0].name == "tokens"
    assert built.layers[-1].outputs[0].shape == (1, TOKENS, DIM)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("sm", RTX.sms or ())
def test_an_engine_for_each_compute_capability(sm: int, tmp_path: Path) -> None:
    built = build(transformer("fp16", blocks=1), tmp_path / "engine", sms=(sm,))
    assert built.sms == (sm,)
    assert summarize(built.layers).fused_attention == 1


@pytest.mark.usefixtures("rtx")
def test_an_engine_for_several_compute_capabilities_is_one_program(tmp_path: Path) -> None:
    model = transformer("fp16", blocks=1)
    every, newest = ((120, 75, 80, 86, 89, 121, 89), (120,))
    both = [build(model, tmp_path / f"{len(sms)}", sms=sms) for sms in (every, newest)]
    assert both[0].sms == RTX.sms
    assert [summarize(built.layers).fused_attention for built in both] == [1, 1]
    assert (
        both[0].path.stat().st_size < 1.5 * both[1].path.stat().st_size
    )  # not one engine after the other


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_dynamic_batch_stays_open(precision: str, tmp_path: Path) -> None:
    model = transformer(precision, blocks=1, batch="batch")
    built = build(model, tmp_path / "engine", precision=precision, batch=Batch(1, 4, 8))
    reads = [tensor for layer in built.layers for tensor in layer.inputs if tensor.name == "tokens"]
    assert reads[0].shape == (-1, TOKENS, DIM)
    assert summarize(built.layers).fused_attention == 1


@pytest.mark.usefixtures("rtx")
def test_a_static_batch_is_in_the_engine(tmp_path: Path) -> None:
    model = transformer("fp16", blocks=1, batch=4)
    built = build(model, tmp_path / "engine", batch=Batch(4, 4, 4))
    assert built.layers[0].inputs[0].shape == (4, TOKENS, DIM)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("precision", "sm"), [("fp32", 75), ("bf16", 75), ("fp8", 86)])
def test_what_cannot_run_a_precision_is_refused_as_the_library_would(
    precision: str,
    sm: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = transformer(precision, blocks=1)
    path = tmp_path / "engine"
    with pytest.raises(InvalidInputError, match=f"no {precision} on sm_{sm}, it needs sm_"):
        build(model, path, precision=precision, sms=(sm, 89))
    able = replace(RTX, oldest_sm=dict.fromkeys(RTX.oldest_sm, 75))
    monkeypatch.setitem(LIBRARIES, "tensorrt-rtx", able)
    with pytest.raises(
        EngineBuildError, match=r"TensorRT-RTX cannot build the graph: .*(?i:sm75|sm86)"
    ):
        build(model, path, precision=precision, sms=(sm, 89))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"sms": (87,)}, InvalidInputError, "sm_87.*75, 80, 86.*Jetson Orin.*target 'tensorrt'"),
        ({"sms": (89, 90, 100)}, InvalidInputError, "asked for sm_90, sm_100;.*Hopper"),
        ({"sms": ()}, InvalidInputError, "no compute capability; it builds for 75, 80"),
        ({"sms": (True,)}, InvalidInputError, "whole numbers"),
        ({"sms": ("89",)}, InvalidInputError, "whole numbers"),
        ({"precision": "fp64"}, InvalidInputError, "must be one of fp32, fp16, bf16, int8, fp8"),
        ({"precision": None}, InvalidInputError, "must be one of"),
        ({"target": "onnx"}, InvalidInputError, "known are tensorrt-rtx, tensorrt"),
        ({"batch": Batch(2, 2, 2)}, InvalidInputError, "the batch, its first axis, must be 2"),
        ({"batch": Batch(1, 2, 4)}, InvalidInputError, "must be open"),
    ],
)
@pytest.mark.usefixtures("rtx")
def test_a_wrong_argument_is_named(
    changes: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        build(transformer("fp16", blocks=1), tmp_path / "engine", **changes)
    assert list(tmp_path.iterdir()) == []


def test_the_gpus_that_no_library_here_serves_are_named_right() -> None:
    assert not {87, 90, 100} & set(RTX.sms or ())


def without_outputs(model: onnx.ModelProto) -> None:
    """The parser of TensorRT-RTX 1.7 ends the process with it."""
    del model.graph.node[3].output[:]


def truncated_weight(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[2]
    weight.raw_data = weight.raw_data[: len(weight.raw_data) // 2]


def missing_weight(model: onnx.ModelProto) -> None:
    del model.graph.initializer[2]


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].op_type = "Anything"


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = model.graph.node[5].output[0]


def empty(model: onnx.ModelProto) -> None:
    model.CopyFrom(helper.make_model(helper.make_graph([], "empty", [], [])))


def no_model_at_all(model: onnx.ModelProto) -> None:
    model.Clear()


def half_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def weights_elsewhere(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[2]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    weight.ClearField("raw_data")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    "damage",
    [
        without_outputs,
        truncated_weight,
        missing_weight,
        unknown_operator,
        cycle,
        empty,
        no_model_at_all,
        half_input,
        weights_elsewhere,
    ],
)
def test_a_damaged_graph_is_refused_before_the_library_sees_it(
    damage: Callable[[onnx.ModelProto], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = transformer("fp16", blocks=1)
    damage(model)
    with pytest.raises(InvalidInputError, match="the graph"):
        build(model, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", [None, b"", "rgb.onnx"])
@pytest.mark.usefixtures("rtx")
def test_something_that_is_no_graph_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="it must be an onnx.ModelProto"):
        build(model, tmp_path / "engine")


@pytest.mark.usefixtures("rtx")
def test_a_graph_that_the_library_cannot_read_is_refused_in_its_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("matrices", [1, 3, 3]), ("determinants", [1]))
    ]
    node = helper.make_node("Det", ["matrices"], ["determinants"], "the_determinant")
    graph = helper.make_graph([node], "determinant", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    with pytest.raises(
        EngineBuildError, match="TensorRT-RTX cannot read the graph: Det the_determinant"
    ):
        build(model, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("rtx")
def test_an_existing_file_is_replaced_or_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "engine"
    path.write_bytes(b"older")

    def interrupt(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(transformer("fp16", blocks=1), path)
    assert only_file(tmp_path).read_bytes() == b"older"
    build(transformer("fp16", blocks=1), path)
    assert only_file(tmp_path).stat().st_size > 100_000


@pytest.mark.usefixtures("rtx")
def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="engine cannot be written"):
        build(transformer("fp16", blocks=1), tmp_path / "file" / "engine")
    with pytest.raises(ArtifactError, match="engine cannot be written"):
        build(transformer("fp16", blocks=1), tmp_path)


@pytest.mark.usefixtures("rtx")
def test_a_cached_engine_is_the_same_file_with_the_same_layers(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    model = transformer("fp16", blocks=1)
    first, second = (build(model, tmp_path / name, cache=cache) for name in ("a", "b"))
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert replace(second, path=first.path, from_cache=False) == first
    next(cache.folder.rglob("engine.bin")).write_bytes(b"damaged")
    third = build(model, tmp_path / "c", cache=cache)
    assert not third.from_cache
    assert third.path.stat().st_size == first.path.stat().st_size
    assert not build(model, tmp_path / "d", cache=cache, sms=(86,)).from_cache
    assert len(list(cache.folder.iterdir())) == 2


@pytest.mark.usefixtures("rtx")
def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="engine cache cannot be written"):
        built = build(
            transformer("fp16", blocks=1), tmp_path / "engine", cache=EngineCache(tmp_path / "file")
        )
    assert built.path.is_file()


PROGRAM = """
import sys
from pathlib import Path
import onnx
from mmad_fast.export.engine_cache import EngineCache
from mmad_fast.export.tensorrt_engine import build_engine
model = onnx.load(sys.argv[1])
print("building", flush=True)
cache = EngineCache(sys.argv[3])
built = build_engine(
    model, Path(sys.argv[2]), target="tensorrt-rtx", precision="fp16", sms=(89,), cache=cache
)
assert "torch" not in sys.modules
print(built.path.stat().st_size)
"""


def start(model: Path, path: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(model), str(path), str(cache)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


@pytest.mark.own_process
@pytest.mark.usefixtures("rtx")
def test_two_processes_build_at_once_and_a_killed_one_leaves_no_file(tmp_path: Path) -> None:
    model, cache = tmp_path / "model.onnx", tmp_path / "cache"
    onnx.save_model(transformer("fp16", blocks=2), model)
    builds = [start(model, tmp_path / f"engines/{name}", cache) for name in ("a", "b", "killed")]
    assert builds[2].stdout is not None
    assert builds[2].stdout.readline() == "building\n"
    builds[2].send_signal(signal.SIGKILL)
    outcomes = [build.communicate(timeout=120) for build in builds]
    assert [build.returncode for build in builds] == [0, 0, -signal.SIGKILL], outcomes
    assert [errors for _, errors in outcomes] == ["", "", ""]
    engines = {path.name for path in (tmp_path / "engines").iterdir()}
    assert {"a", "b"} <= engines
    assert "killed" not in engines
    assert len(list(cache.iterdir())) == 1


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """TensorRT 10.14 on a machine with a Hopper GPU."""
    fake = FakeTensorRt()
    pretend(monkeypatch, fake, 90)
    return fake


def pretend(monkeypatch: pytest.MonkeyPatch, fake: FakeTensorRt, sm: int) -> None:
    version = f"tensorrt {fake.__version__}"
    for name, stand_in in {
        "import_library": lambda name: fake,
        "library_version": lambda name: version,
        "gpu_refusal": lambda: None,
        "gpu_sm": lambda: sm,
        "gpu_name": lambda: "NVIDIA H100",
    }.items():
        monkeypatch.setattr(tensorrt_engine, name, stand_in)


def test_tensorrt_takes_the_same_path_on_the_gpu_at_hand(
    tensorrt: FakeTensorRt, tmp_path: Path
) -> None:
    model = transformer("fp16", batch="batch", blocks=1)
    path = tmp_path / "engine"
    built = build(model, path, target="tensorrt", sms=(), batch=Batch(1, 4, 8))
    assert path.read_bytes() == ENGINE
    assert (built.sms, built.library) == ((90,), "tensorrt 10.14.1")
    assert [layer.name for layer in built.layers] == ["_gemm_mha_v2_myl0_5"]
    assert tensorrt.parsed == model.SerializeToString(deterministic=True)
    assert tensorrt.config.profiling_verbosity == "detailed"
    assert tensorrt.calls == [
        ("create_network", 2),
        ("parse", True),
        ("clear_flag", "tf32"),
        ("set_shape", "tokens", (1, 49, 64), (4, 49, 64), (8, 49, 64)),
        ("add_optimization_profile",),
        ("build_serialized_network",),
        ("deserialize_cuda_engine", ENGINE),
    ]


def test_tensorrt_builds_for_no_other_gpu(tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"sms are \[87\].*which is sm_90"):
        build(transformer("fp16", blocks=1), tmp_path / "e", target="tensorrt", sms=(87,))
    assert tensorrt.calls == []


@pytest.mark.parametrize("where", ["parser_errors", "build_errors"])
def test_the_errors_of_tensorrt_are_in_the_message(
    where: str, tensorrt: FakeTensorRt, tmp_path: Path
) -> None:
    setattr(tensorrt, where, ["no kernel for this", "no kernel for this", "no memory"])
    with pytest.raises(EngineBuildError, match=r"no kernel for this; .*no memory\.") as raised:
        build(transformer("fp16", blocks=1), tmp_path / "e", target="tensorrt", sms=())
    assert "a warning" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_written_to_stderr_past_the_logger_is_not_lost(
    fails: bool,
    tensorrt: FakeTensorRt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The library's compiler does that where it fails; otherwise it was another thread."""

    def parse(parser: Any, graph: bytes) -> bool:
        os.write(2, b"past the logger\n")
        return not fails

    monkeypatch.setattr(fake_tensorrt.Parser, "parse", parse)
    if fails:
        with pytest.raises(EngineBuildError, match="cannot read the graph: past the logger"):
            build(transformer("fp16", blocks=1), tmp_path / "e", target="tensorrt", sms=())
    else:
        build(transformer("fp16", blocks=1), tmp_path / "e", target="tensorrt", sms=())
    assert capfd.readouterr().err == ("" if fails else "past the logger\n")


CLOSED_STDERR = """
import os, sys
from mmad_fast.export.tensorrt_messages import taking_stderr
if sys.argv[1] == "object":
    sys.stderr.close()
elif sys.argv[1] == "pipe":
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(reader)
else:
    os.close(2)
before = len(os.listdir("/proc/self/fd"))
with taking_stderr() as spilled:
    if sys.argv[1] != "descriptor":
        os.write(2, b"past the logger")
        assert spilled() == "past the logger"
assert len(os.listdir("/proc/self/fd")) == before
print("done")
"""


@pytest.mark.own_process
@pytest.mark.parametrize("closed", ["object", "pipe", "descriptor"])
def test_a_process_without_a_stderr_builds_too(closed: str) -> None:
    command = [sys.executable, "-c", CLOSED_STDERR, closed]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.usefixtures("rtx")
def test_threads_build_one_after_the_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = transformer("fp16", blocks=1)
    with ThreadPoolExecutor(3) as threads:
        engines = threads.map(lambda name: build(model, tmp_path / name), "abc")
        layers = [engine.layers for engine in engines]
    assert layers[0] == layers[1] == layers[2] != ()
    assert capfd.readouterr() == ("", "")


def test_without_a_gpu_tensorrt_says_that_it_needs_one(
    tensorrt: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_engine, "gpu_refusal", lambda: "there is no NVIDIA driver here")
    with pytest.raises(
        BackendUnavailableError,
        match="TensorRT builds on the GPU that the engine will run on: there is no NVIDIA driver",
    ):
        build(transformer("fp16", blocks=1), tmp_path / "e", target="tensorrt", sms=())
    assert tensorrt.calls == []


@pytest.mark.skipif(library_refusal("tensorrt") is None, reason="TensorRT is installed")
def test_without_tensorrt_the_message_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="TensorRT is not installed; install it: "):
        build(transformer("fp16", blocks=1), tmp_path / "e", target="tensorrt", sms=())


def test_a_cached_engine_of_another_gpu_is_not_taken(
    tensorrt: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, model = EngineCache(tmp_path / "cache"), transformer("fp16", blocks=1)
    names = ["NVIDIA H100", "NVIDIA H100", "NVIDIA H200"]
    hits = []
    for name in names:
        monkeypatch.setattr(tensorrt_engine, "gpu_name", lambda name=name: name)
        built = build(model, tmp_path / "e", target="tensorrt", sms=(), cache=cache)
        hits.append(built.from_cache)
    assert hits == [False, True, False]


def test_a_cached_engine_of_another_profile_or_version_is_not_taken(
    tensorrt: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is the same in all of them."""
    cache, model = EngineCache(tmp_path / "cache"), transformer("fp16", blocks=1, batch="batch")

    def is_hit(batch: Batch) -> bool:
        options = {"target": "tensorrt", "sms": (), "cache": cache, "batch": batch}
        return build(model, tmp_path / "e", **options).from_cache

    batches = Batch(1, 4, 8), Batch(1, 4, 8), Batch(1, 2, 8), Batch(1, 4, 16), Batch(2, 4, 8)
    assert [is_hit(batch) for batch in batches] == [False, True, False, False, False]
    monkeypatch.setattr(tensorrt_engine, "library_version", lambda name: "tensorrt 10.14.2")
    assert not is_hit(batches[0])


def test_a_tensorrt_that_does_not_start_says_why(
    tensorrt: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(logger: Any) -> None:
        logger.log(FakeTensorRt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(tensorrt, "Builder", fail)
    with pytest.raises(EngineBuildError, match="TensorRT does not start: CUDA init.* error: 35"):
        build(transformer("fp16", blocks=1), tmp_path / "e", target="tensorrt", sms=())


def test_a_tensorrt_without_strong_types_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTensorRt("8.6.2")
    fake.NetworkDefinitionCreationFlag = object()
    pretend(monkeypatch, fake, 87)
    with pytest.raises(BackendUnavailableError, match="TensorRT 8.6.2 .*TensorRT 10 or newer"):
        build(transformer("fp16", blocks=1), tmp_path / "e", target="tensorrt", sms=())
