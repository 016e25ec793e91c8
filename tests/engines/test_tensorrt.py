"""TensorRT's engine on a stand-in for the GPU: what is called, in which order, and what is freed;
then with the real cuda-bindings, and with the real library as far as it goes without a GPU."""

from __future__ import annotations

import gc
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.fake_gpu import (
    GOOD_ENGINE,
    VERSION,
    FakeConfig,
    FakeEngine,
    FakeExecution,
    FakeGpu,
    FakeKernels,
    FakeLibrary,
    FakeRuntime,
    floats,
    real,
    trt,
)
from numpy.typing import NDArray

from mmad_fast.engines import engine_refusal, open_device_graph, open_graph, tensorrt
from mmad_fast.engines.tensorrt import MAX_GRAPHS, TensorRtEngine
from mmad_fast.errors import (
    ArtifactError,
    BackendUnavailableError,
    InvalidInputError,
    MissingDependencyError,
)
from mmad_fast.gpu import device_context
from mmad_fast.gpu.device_context import DriverError

Open = Callable[..., TensorRtEngine]
SIZE = 4 * 5 * 48
CALLER = 0xABC
"""A stream of the caller's."""
OUT_OF_MEMORY = real.CUresult.CUDA_ERROR_OUT_OF_MEMORY


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMAD_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "rgb.fp16.sm86-sm89.tensorrt-rtx.engine"
    file.write_bytes(GOOD_ENGINE)
    return file


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def library(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    """The fake library, which engines that are opened from now on use, with the fake driver."""
    fake = FakeLibrary(gpu)
    monkeypatch.setattr(tensorrt, "import_library", lambda name: fake)
    monkeypatch.setattr(device_context, "import_driver", lambda advice: gpu)
    return fake


def inputs(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(5, 48)).astype(np.float32)


def check(answer: dict[str, NDArray], x: NDArray) -> None:
    np.testing.assert_array_equal(answer["y"], 2 * x)
    np.testing.assert_array_equal(answer["z"], 2 * x + 1)


def buffers(gpu: FakeGpu, seed: int) -> tuple[dict[str, int], dict[str, int]]:
    """Addresses of the caller's memory on the fake GPU: inputs and outputs."""
    gpu.current.append("context of device 0")
    x, y, z = (int(gpu.cuMemAlloc(SIZE)[1]) for _ in range(3))
    gpu.current.pop()
    floats(x, SIZE)[:] = inputs(seed).ravel()
    return {"x": x}, {"y": y, "z": z}


def check_bound(gpu: FakeGpu, outputs: dict[str, int], seed: int) -> None:
    gpu.finish()
    check({name: floats(at, SIZE).reshape(5, 48) for name, at in outputs.items()}, inputs(seed))


DRIVER_FAKES = [name for name in vars(FakeGpu) if name.startswith("cu") and name[2].isupper()]


@pytest.mark.parametrize("name", DRIVER_FAKES)
def test_the_fake_takes_what_the_real_driver_does(name: str) -> None:
    wanted = list(inspect.signature(getattr(real, name)).parameters)
    assert list(inspect.signature(getattr(FakeGpu, name)).parameters)[1:] == wanted


@pytest.mark.parametrize(
    ("fake", "kind"),
    [
        (FakeRuntime, trt.Runtime),
        (FakeEngine, trt.ICudaEngine),
        (FakeExecution, trt.IExecutionContext),
        (FakeConfig, trt.IRuntimeConfig),
        (FakeKernels, trt.IRuntimeCache),
    ],
)
def test_the_fake_takes_what_the_real_library_does(fake: type, kind: type) -> None:
    for name, method in vars(fake).items():
        if name.startswith("_"):
            continue
        assert hasattr(kind, name)
        if callable(method):
            documented = getattr(kind, name).__doc__
            arguments = list(inspect.signature(method).parameters)[1:]
            wanted = [re.findall(r"(\w+): ", line) for line in documented.splitlines()]
            assert ["self", *arguments] in wanted, f"{kind.__name__}.{name}"


def test_one_run_is_copies_in_the_engine_copies_out_and_one_wait(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    engine = TensorRtEngine(path)
    assert engine.input_shapes == {"x": (5, 48)}
    assert engine.output_shapes == {"y": (5, 48), "z": (5, 48)}
    assert gpu.of("cuStreamCreate") == [("cuStreamCreate", 1)]  # not ordered with other streams
    (stream,) = gpu.streams
    assert gpu.of("cuMemAlloc") == [("cuMemAlloc", SIZE)] * 3
    assert gpu.of("cuMemAllocHost") == [("cuMemAllocHost", SIZE)] * 3
    for seed in (1, 2):
        gpu.forget()
        check(engine.run({"x": inputs(seed)}), inputs(seed))
        assert gpu.calls == [
            ("cuMemcpyHtoDAsync", SIZE, stream),
            ("execute", stream),
            ("cuMemcpyDtoHAsync", SIZE, stream),
            ("cuMemcpyDtoHAsync", SIZE, stream),
            ("cuStreamSynchronize", stream),
        ]
    assert gpu.current == []


def test_an_answer_outlives_the_next_run_and_the_engine(library: FakeLibrary, path: Path) -> None:
    with TensorRtEngine(path) as engine:
        first = engine.run({"x": inputs(3)})
        engine.run({"x": inputs(4)})
    check(first, inputs(3))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, r"engine: got inputs \[\], the graph needs \['x'\]"),
        ({"x": inputs(0)[:4]}, r"input 'x' has shape \(4, 48\), the graph needs \(5, 48\)"),
    ],
)
def test_wrong_inputs_are_named(library: FakeLibrary, path: Path, wrong: Any, words: str) -> None:
    with TensorRtEngine(path) as engine, pytest.raises(InvalidInputError, match=words):
        engine.run(wrong)


def test_closing_frees_everything_in_order(library: FakeLibrary, gpu: FakeGpu, path: Path) -> None:
    engine = TensorRtEngine(path, use_cuda_graph=True)
    for seed in range(3):
        engine.run({"x": inputs(seed)})
    gpu.forget()
    engine.close()
    assert gpu.names() == [
        "cuCtxSynchronize",
        *("cuMemFreeHost", "cuMemFree") * 3,
        "cuGraphExecDestroy",
        "cuStreamDestroy",
        *(f"drop {part}" for part in ("context", "config", "kernels", "engine", "runtime")),
        "release",
    ]
    engine.close()
    assert gpu.is_empty
    assert gpu.current == []
    assert gpu.names().count("release") == 1
    for use in (
        lambda: engine.run({"x": inputs(0)}),
        lambda: engine.run_bound({"x": 1}, {"y": 1, "z": 1}),
    ):
        with pytest.raises(InvalidInputError, match="the engine is closed; open it again"):
            use()


def test_garbage_collection_frees_everything(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    engine = TensorRtEngine(path, use_cuda_graph=True)
    for seed in range(3):
        engine.run({"x": inputs(seed)})
    del engine
    gc.collect()
    assert gpu.is_empty
    assert gpu.names()[-2:] == ["drop runtime", "release"]


def test_closing_frees_the_rest_where_a_call_fails(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    engine = TensorRtEngine(path)
    gpu.codes["cuCtxSynchronize"] = real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DriverError, match="cuCtxSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        engine.close()
    assert gpu.is_empty
    assert gpu.current == []


OPENING = ["cuMemAlloc", "cuMemAllocHost", "cuStreamCreate", "cuDevicePrimaryCtxRetain"]


@pytest.mark.parametrize("name", OPENING)
def test_a_refused_call_while_opening_frees_what_was_there(
    library: FakeLibrary, gpu: FakeGpu, path: Path, name: str
) -> None:
    gpu.codes[name] = OUT_OF_MEMORY
    with pytest.raises(DriverError, match=f"{name} failed.*OUT_OF_MEMORY.*has memory left$"):
        TensorRtEngine(path)
    assert gpu.is_empty
    assert gpu.current == []
    made = [part[5:] for part in gpu.names() if part.startswith("make")]
    assert [part[5:] for part in gpu.names() if part.startswith("drop")] == [
        part for part in ("context", "config", "kernels", "engine", "runtime") if part in made
    ]


def test_memory_that_runs_out_says_for_what(library: FakeLibrary, gpu: FakeGpu, path: Path) -> None:
    gpu.codes["cuMemAlloc"] = OUT_OF_MEMORY
    with pytest.raises(DriverError, match=r"for rgb\.fp16.*engine: 'x' \(5, 48\): CUDA_ERROR_OUT"):
        TensorRtEngine(path)


def leave_foreign_kernels(library: FakeLibrary, path: Path) -> None:
    """Leaves kernels in the cache that the library will refuse, which is no error."""
    library.compiled = b"kernels"
    with TensorRtEngine(path) as engine:
        engine.run({"x": inputs(0)})
    library.gpu.forget()
    library.refused.add("kernels")


def test_a_library_that_does_not_start(library: FakeLibrary, gpu: FakeGpu, path: Path) -> None:
    library.refused.add("runtime")
    words = (
        f"tensorrt-rtx {VERSION} does not start: no runtime today; check that `nvidia-smi` shows"
    )
    with pytest.raises(DriverError, match=re.escape(words)):
        TensorRtEngine(path)
    assert gpu.is_empty


@pytest.mark.parametrize(
    ("refused", "kind", "words"),
    [
        ("deserialize", ArtifactError, "cannot load the graph on this GPU"),
        ("context", DriverError, "cannot make an execution context: no context today; check with"),
    ],
)
def test_what_the_library_refuses_while_opening_is_said_in_its_words(
    library: FakeLibrary, gpu: FakeGpu, path: Path, refused: str, kind: type, words: str
) -> None:
    leave_foreign_kernels(library, path)
    library.refused.add(refused)
    with pytest.raises(kind, match=rf"tensorrt-rtx {VERSION} {words}") as caught:
        TensorRtEngine(path)
    assert f"no {refused} today" in str(caught.value)
    assert "no kernels today" not in str(caught.value)
    # Everything is gone although the error, with its traceback, is still there.
    assert gpu.is_empty
    assert gpu.names()[-2:] == ["drop runtime", "release"]


def test_an_engine_for_another_gpu_says_both_and_the_command(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    gpu.sm = 75
    library.refused.add("deserialize")
    library.complaint = "Platform (compute capability) mismatch"
    words = (
        "cannot load the graph on this GPU, which is sm75, the file is named for sm86-sm89: it was "
        "built for another compute capability: Platform (compute capability) mismatch; build it "
        "for this machine: mmad-fast export ARTIFACT --to tensorrt-rtx --precision fp16 --sm 75"
    )
    with pytest.raises(ArtifactError, match=re.escape(words)):
        TensorRtEngine(path)


def test_every_diagnosis_of_the_library_has_words() -> None:
    from mmad_fast.engines.tensorrt_runtime import MEANINGS

    assert set(MEANINGS) == set(trt.EngineInvalidityDiagnostics.__members__)


def test_a_missing_file(library: FakeLibrary, gpu: FakeGpu, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.engine: .*No such file.*--precision PRECISION"):
        TensorRtEngine(tmp_path / "none.engine")
    assert gpu.is_empty


def test_an_engine_with_other_types_is_refused(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    library.dtypes["z"] = trt.DataType.HALF
    with pytest.raises(
        ArtifactError, match="'z' is DataType.HALF, a detector's engine has float32"
    ):
        TensorRtEngine(path)
    assert gpu.is_empty


def test_a_free_batch_is_one(library: FakeLibrary, path: Path) -> None:
    library.shapes = dict.fromkeys("xyz", (-1, 48))
    with TensorRtEngine(path) as engine:
        assert engine.input_shapes == {"x": (1, 48)}
        assert engine.output_shapes == {"y": (1, 48), "z": (1, 48)}
        check(engine.run({"x": inputs(1)[:1]}), inputs(1)[:1])
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert library.specialization == eager


def test_an_engine_for_larger_batches_is_refused(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    library.shapes = dict.fromkeys("xyz", (-1, 48))
    library.smallest = 4
    words = r"'x' takes \(4, 48\) at the least, a detector needs \(1, 48\): .*--batch 1"
    with pytest.raises(ArtifactError, match=words):
        TensorRtEngine(path)
    assert gpu.is_empty


@pytest.mark.parametrize(
    "name", ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize", "execute", "address"]
)
def test_a_run_that_fails_raises_and_the_next_one_may_succeed(
    library: FakeLibrary, gpu: FakeGpu, path: Path, name: str
) -> None:
    with TensorRtEngine(path) as engine:
        if name.startswith("cu"):
            gpu.codes[name] = real.CUresult.CUDA_ERROR_UNKNOWN
        library.refused.add(name)
        with pytest.raises(DriverError, match=f"{name} failed|no {name} today"):
            engine.run({"x": inputs(1)})
        assert gpu.current == []
        gpu.codes.clear()
        library.refused.clear()
        check(engine.run({"x": inputs(2)}), inputs(2))
    assert gpu.is_empty


def test_buffers_of_the_caller_in_the_callers_stream(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    given, written = buffers(gpu, 1)
    gpu.forget()
    engine = TensorRtEngine(path, device="cuda", stream=CALLER)
    assert "cuStreamCreate" not in gpu.names()
    assert "cuMemAlloc" not in gpu.names()  # the caller has the memory
    gpu.forget()
    engine.run_bound(given, written)
    assert gpu.calls == [("execute", CALLER)]  # and nobody waited
    check_bound(gpu, written, 1)
    others = buffers(gpu, 2)
    engine.run_bound(*others)
    check_bound(gpu, others[1], 2)
    check(engine.run({"x": inputs(3)}), inputs(3))  # allocates what it needs
    assert len(gpu.pinned) == 3
    engine.close()
    assert not gpu.pinned
    assert len(gpu.device) == 6  # the caller's


def test_a_refused_address_leaves_no_mixture_of_old_and_new_ones(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    first, second = buffers(gpu, 1), buffers(gpu, 2)
    with TensorRtEngine(path, device="cuda", stream=CALLER) as engine:
        engine.run_bound(*first)
        check_bound(gpu, first[1], 1)
        library.refused.add("address")
        with pytest.raises(DriverError, match="refuses the address 0x.* of 'x': no address today"):
            engine.run_bound(*second)
        library.refused.clear()
        floats(first[1]["y"], SIZE)[:] = np.nan
        engine.run_bound(*first)
        check_bound(gpu, first[1], 1)


def test_without_a_stream_runs_are_ordered_with_the_default_one(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    with TensorRtEngine(path, device="cuda"):
        assert gpu.of("cuStreamCreate") == [("cuStreamCreate", 0)]
    assert gpu.is_empty


def test_buffers_that_are_missing(library: FakeLibrary, path: Path) -> None:
    words = r"got buffers \['x', 'y'\], the graph needs \['x', 'y', 'z'\]"
    with TensorRtEngine(path) as engine, pytest.raises(InvalidInputError, match=words):
        engine.run_bound({"x": 1}, {"y": 2})


def test_a_cuda_graph_is_captured_once_and_replayed(
    library: FakeLibrary, gpu: FakeGpu, path: Path
) -> None:
    with TensorRtEngine(path, use_cuda_graph=True) as engine:
        (stream,) = gpu.streams
        gpu.forget()
        check(engine.run({"x": inputs(0)}), inputs(0))
        assert [name for name in gpu.names() if "Graph" in name or "Capture" in name] == []
        gpu.forget()
        check(engine.run({"x": inputs(1)}), inputs(1))
        assert gpu.names() == [
            "cuMemcpyHtoDAsync",
            "cuStreamBeginCapture",
            "execute",
            "cuStreamEndCapture",
            "cuGraphInstantiate",
            "cuGraphDestroy",
            "cuGraphLaunch",
            *("cuMemcpyDtoHAsync",) * 2,
            "cuStreamSynchronize",
        ]
        gpu.forget()
        check(engine.run({"x": inputs(2)}), inputs(2))
        assert gpu.of("cuGraphLaunch") == [("cuGraphLaunch", stream)]
        assert gpu.of("execute") == []
        assert engine.graph_refusal is None
    assert gpu.is_empty


def test_other_addresses_are_captured_again(library: FakeLibrary, gpu: FakeGpu, path: Path) -> None:
    engine = TensorRtEngine(path, device="cuda", stream=CALLER, use_cuda_graph=True)
    places = [buffers(gpu, seed) for seed in range(MAX_GRAPHS + 1)]
    for _ in range(2):
        for seed, (given, written) in enumerate(places):
            floats(written["z"], SIZE)[:] = np.nan
            engine.run_bound(given, written)
            check_bound(gpu, written, seed)
    assert len(gpu.graphs) == MAX_GRAPHS  # the oldest goes
    last = places[-1]
    gpu.forget()
    engine.run_bound(*last)
    assert gpu.names() == ["cuGraphLaunch"]
    engine.close()
    assert not gpu.graphs


@pytest.mark.parametrize(
    "problem",
    [
        "cuStreamBeginCapture",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "capture",
        "execute in a capture",
    ],
)
def test_what_cannot_be_captured_runs_without(
    library: FakeLibrary,
    gpu: FakeGpu,
    path: Path,
    problem: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if problem.startswith("cu"):
        gpu.codes[problem] = real.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    library.refused.add(problem)
    with TensorRtEngine(path, use_cuda_graph=True) as engine:
        for seed in range(4):
            check(engine.run({"x": inputs(seed)}), inputs(seed))
        assert re.search(f"{problem} failed|no {problem} today", engine.graph_refusal or "")
        assert gpu.names().count("cuStreamBeginCapture") <= 1
    assert len(caplog.records) == 1
    assert "runs without a CUDA graph" in caplog.text
    assert gpu.is_empty


def test_the_default_stream_is_not_captured(library: FakeLibrary, gpu: FakeGpu, path: Path) -> None:
    with TensorRtEngine(path, device="cuda", use_cuda_graph=True) as engine:
        given, written = buffers(gpu, 1)
        for _ in range(3):
            engine.run_bound(given, written)
        assert engine.graph_refusal == "the default stream cannot be captured; name a stream"
        assert "cuStreamBeginCapture" not in gpu.names()


def test_threads_get_their_own_answers(library: FakeLibrary, gpu: FakeGpu, path: Path) -> None:
    with TensorRtEngine(path, use_cuda_graph=True) as engine, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: engine.run({"x": inputs(seed)}), range(40)))
    for seed, answer in enumerate(answers):
        check(answer, inputs(seed))
    assert gpu.is_empty


def test_two_engines_in_one_process(library: FakeLibrary, gpu: FakeGpu, path: Path) -> None:
    first, second = TensorRtEngine(path), TensorRtEngine(path)
    assert len(gpu.streams) == 2
    check(first.run({"x": inputs(1)}), inputs(1))
    check(second.run({"x": inputs(2)}), inputs(2))
    first.close()
    check(second.run({"x": inputs(3)}), inputs(3))
    second.close()
    assert gpu.is_empty


def test_compiled_kernels_are_kept_for_the_next_start(
    library: FakeLibrary, gpu: FakeGpu, path: Path, cache: Path
) -> None:
    library.compiled = b"kernels for sm_89"
    with TensorRtEngine(path) as engine:
        assert not list(cache.rglob("*.kernels"))  # some are compiled by the first run
        engine.run({"x": inputs(1)})
    (file,) = cache.rglob("*.kernels")
    assert file.read_bytes() == b"kernels for sm_89"
    assert re.fullmatch(rf"[0-9a-f]{{32}}\.sm89\.{re.escape(VERSION)}\.kernels", file.name)
    assert library.taken_kernels == []
    written = file.stat().st_mtime_ns
    with TensorRtEngine(path) as engine:
        engine.run({"x": inputs(1)})
    assert library.taken_kernels == [b"kernels for sm_89"]
    assert file.stat().st_mtime_ns == written  # nothing new to write
    library.refused.add("kernels")  # of another driver: compiled and written again
    library.compiled = b"kernels of now"
    with TensorRtEngine(path) as engine:
        engine.run({"x": inputs(1)})
    assert file.read_bytes() == b"kernels of now"
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    gpu.sm = 86
    with TensorRtEngine(path) as engine:
        engine.run({"x": inputs(1)})
    assert len(list(cache.rglob("*.kernels"))) == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    library: FakeLibrary, path: Path, cache: Path
) -> None:
    library.compiled = b"kernels"
    cache.write_bytes(b"a file, not a folder")
    with TensorRtEngine(path) as engine:
        check(engine.run({"x": inputs(1)}), inputs(1))


def test_the_other_library_has_no_cache_of_kernels(
    library: FakeLibrary, path: Path, cache: Path
) -> None:
    library.compiled = b"kernels"
    with TensorRtEngine(path, library="tensorrt") as engine:
        check(engine.run({"x": inputs(1)}), inputs(1))
    assert not library.has_config
    assert not cache.exists()


def test_older_versions_of_the_library_lack_some_questions(
    library: FakeLibrary, gpu: FakeGpu, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeExecution, "is_stream_capturable")
    monkeypatch.delattr(FakeRuntime, "get_engine_validity")
    with TensorRtEngine(path, use_cuda_graph=True) as engine:
        for seed in range(3):
            check(engine.run({"x": inputs(seed)}), inputs(seed))
        assert len(gpu.graphs) == 1
    path.write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match="sm86-sm89: it gives no reason; build it"):
        TensorRtEngine(path)


def test_the_table_opens_it_with_its_library(
    library: FakeLibrary, gpu: FakeGpu, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(tensorrt, "import_library", lambda name: asked.append(name) or library)
    monkeypatch.setattr(tensorrt, "gpu_refusal", lambda: None)
    monkeypatch.setattr(tensorrt, "library_refusal", lambda name: None)
    for name in ("tensorrt-rtx", "tensorrt"):
        graph = open_graph(path, engine=name, num_threads=2)
        check(graph.run({"x": inputs(1)}), inputs(1))
        device_graph = open_device_graph(path, engine=name, device_index=0, stream=CALLER)
        device_graph.run_bound(*buffers(gpu, 1))
    assert asked == ["tensorrt-rtx"] * 2 + ["tensorrt"] * 2
    with pytest.raises(InvalidInputError, match="num_threads"):
        open_graph(path, engine="tensorrt", num_threads=0)


def test_a_missing_device_or_driver(library: FakeLibrary, gpu: FakeGpu, path: Path) -> None:
    with pytest.raises(
        BackendUnavailableError, match="no CUDA device 3: the driver has 1; .*engine='onnxruntime'"
    ):
        TensorRtEngine(path, device_index=3)
    assert gpu.calls == []


def test_cuda_bindings_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "import_library", lambda name: FakeLibrary(FakeGpu()))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match="a TensorRT engine needs cuda-bindings"):
        TensorRtEngine(path)


def test_what_is_missing_is_said_before_a_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "gpu_refusal", lambda: "there is no NVIDIA driver here; do this")
    with pytest.raises(
        BackendUnavailableError,
        match="engine 'tensorrt-rtx' cannot run here: there is no NVIDIA driver here; do this",
    ):
        open_graph(tmp_path / "none.engine", engine="tensorrt-rtx")
    monkeypatch.setattr(tensorrt, "gpu_refusal", lambda: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "TensorRT" in str(engine_refusal("tensorrt"))
    assert "install" in str(engine_refusal("tensorrt", "cuda"))


def test_the_version_is_the_librarys() -> None:
    assert tensorrt.version("tensorrt-rtx") == trt.__version__


@pytest.mark.parametrize("content", [b"garbage" * 100, b""])
def test_the_real_library_says_what_is_wrong_with_a_file(
    content: bytes, path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_context, "import_driver", lambda advice: gpu)
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"tensorrt-rtx {trt.__version__} cannot load") as said:
        TensorRtEngine(path)
    assert "it is no engine of this library, or damaged: " in str(said.value)
    assert "deserializeCudaEngine" in str(said.value)
    assert gpu.is_empty


PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from engines.fake_gpu import FakeLibrary, trt
from mmad_fast.engines import tensorrt

class Quiet:
    current, captured = [1], None
    def _record(self, *call): ...
    def hand_over(self, work, stream): print(f"execute in {stream:#x}")

tensorrt.import_library = lambda name: FakeLibrary(Quiet())
with tensorrt.TensorRtEngine(Path(sys.argv[1]), use_cuda_graph=True) as engine:
    for _ in range(3):
        engine.run({"x": np.ones((5, 48), np.float32)})
    print(engine.graph_refusal)
with tensorrt.TensorRtEngine(Path(sys.argv[1]), device="cuda", stream=0xabc) as engine:
    engine.run_bound({"x": 16}, {"y": 32, "z": 48})
print(sorted({"torch", "triton"} & set(sys.modules)))
"""


def test_the_real_bindings_take_what_the_engine_gives(path: Path, tmp_path: Path) -> None:
    """In place of libcuda.so.1 stands a library that prints how its functions are called."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to make the stand-in for libcuda.so.1")
    tests = Path(__file__).parents[1]
    source, folder = tests / "gpu" / "fake_libcuda.cpp", tmp_path / "driver"
    folder.mkdir()
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(tests)}
    command = [sys.executable, "-u", "-c", PROGRAM, path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    inputs_in, outputs_out = ["to device 960 in 0x5000"], ["to host 960 in 0x5000"] * 2
    assert done.stdout.splitlines() == [
        "stream 0x5000 flags 1",
        *["allocate 960", "allocate pinned 960"] * 3,
        *inputs_in,
        "execute in 0x5000",
        *outputs_out,
        "wait for 0x5000",
        *inputs_in,
        "begin capture 0x5000 mode 1",
        "execute in 0x5000",
        "end capture 0x5000",
        "instantiate 0x6000 flags 0",
        "destroy graph 0x6000",
        "launch 0x7000 in 0x5000",
        *outputs_out,
        "wait for 0x5000",
        *inputs_in,
        "launch 0x7000 in 0x5000",
        *outputs_out,
        "wait for 0x5000",
        "None",
        "wait for all",
        *["free pinned", "free"] * 3,
        "destroy executable 0x7000",
        "destroy stream 0x5000",
        "release 0",
        "execute in 0xabc",
        "wait for all",
        "release 0",
        "[]",
    ]
