"""The real TensorRT libraries on a real GPU: an engine built here answers as its graph."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.product_graph import WEIGHT, inputs, save_product

from mmad_fast.engines import engine_refusal
from mmad_fast.engines.tensorrt import ADVICE, TensorRtEngine
from mmad_fast.engines.tensorrt_library import LIBRARIES, gpu_sm, import_library
from mmad_fast.errors import ArtifactError
from mmad_fast.gpu.device_context import DeviceContext


@pytest.fixture(params=list(LIBRARIES))
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = request.param
    reason = engine_refusal(name)
    if reason is not None:
        pytest.skip(reason)
    sms = LIBRARIES[name].sms
    if sms is not None and gpu_sm() not in sms:
        pytest.skip(f"{name} does not serve sm_{gpu_sm()}")
    monkeypatch.setenv("MMAD_FAST_CACHE", str(tmp_path / "cache"))
    return name


def build(library: str, folder: Path, *, rows: int | str = 5) -> Path:
    trt = import_library(library)
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network, config = builder.create_network(flags), builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(save_product(folder / "product.onnx", rows=rows)))
    if rows != 5:
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, 48), (2, 48), (4, 48))
        config.add_optimization_profile(profile)
    if library == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{gpu_sm()}"), 0)
    path = folder / "product.engine"
    path.write_bytes(bytes(builder.build_serialized_network(network, config)))
    return path


def check(answer: dict[str, Any], seed: int, rows: int = 5) -> None:
    expected = inputs(seed)[:rows].astype(np.float64) @ WEIGHT.astype(np.float64) + 1
    np.testing.assert_allclose(answer["y"], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(answer["z"], 2 * expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("use_cuda_graph", [False, True])
def test_answers(library: str, tmp_path: Path, use_cuda_graph: bool) -> None:
    path = build(library, tmp_path)
    for _ in range(2):  # the second start finds the compiled kernels
        with TensorRtEngine(path, library=library, use_cuda_graph=use_cuda_graph) as engine:
            for seed in range(4):
                check(engine.run({"x": inputs(seed)}), seed)
            with ThreadPoolExecutor(4) as pool:
                for seed, answer in enumerate(
                    pool.map(lambda seed: engine.run({"x": inputs(seed)}), range(20))
                ):
                    check(answer, seed)


def test_a_free_batch_is_one(library: str, tmp_path: Path) -> None:
    path = build(library, tmp_path, rows="batch")
    with TensorRtEngine(path, library=library) as engine:
        assert engine.input_shapes == {"x": (1, 48)}
        check(engine.run({"x": inputs(1)[:1]}), 1, rows=1)


@pytest.fixture
def context() -> Iterator[DeviceContext]:
    context = DeviceContext(0, ADVICE)
    context.retain()
    yield context
    context.release()


@pytest.mark.parametrize("use_cuda_graph", [False, True])
def test_buffers_of_the_caller(
    library: str, tmp_path: Path, context: DeviceContext, use_cuda_graph: bool
) -> None:
    sizes = {"x": 4 * 5 * 48, "y": 4 * 5 * 33, "z": 4 * 5 * 33}
    path = build(library, tmp_path)
    with context.current():
        stream = int(context.call("cuStreamCreate", 1))
        at = {name: int(context.call("cuMemAlloc", size)) for name, size in sizes.items()}
    engine = TensorRtEngine(
        path, library=library, device="cuda", stream=stream, use_cuda_graph=use_cuda_graph
    )
    for seed in range(4):
        with context.current():
            context.call("cuMemcpyHtoD", at["x"], inputs(seed).ctypes.data, sizes["x"])
            # From pageable memory it may return before the copy is there, and the stream does not
            # wait for the default one.
            context.call("cuCtxSynchronize")
        engine.run_bound({"x": at["x"]}, {name: at[name] for name in "yz"})
        answer = {name: np.full((5, 33), np.nan, np.float32) for name in "yz"}
        with context.current():
            context.call("cuStreamSynchronize", stream)
            for name, array in answer.items():
                context.call("cuMemcpyDtoH", array.ctypes.data, at[name], sizes[name])
        check(answer, seed)
    engine.close()
    with context.current():
        for address in at.values():
            context.call("cuMemFree", address)
        context.call("cuStreamDestroy", stream)


def test_a_damaged_file_is_refused(library: str, tmp_path: Path) -> None:
    path = build(library, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=f"{library} .* cannot load the graph on this GPU"):
        TensorRtEngine(path, library=library)
