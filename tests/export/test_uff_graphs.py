"""The graphs of M3DM's feature fusion, exported as fitting does it, for every target and
precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch", reason="exporting needs the fit extra")

from export.conftest import feed_of, run_graph  # noqa: E402

from mmad_fast.engines.tensorrt_library import library_refusal  # noqa: E402
from mmad_fast.export.batch import Batch  # noqa: E402
from mmad_fast.export.deployment_graph import TARGETS, deployment_graph  # noqa: E402
from mmad_fast.export.engine_layers import summarize  # noqa: E402
from mmad_fast.export.tensorrt_engine import build_engine  # noqa: E402
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock, export_uff_graphs  # noqa: E402

BOUNDS = {"fp32": 1e-6, "fp16": 3e-3, "bf16": 2e-2, "int8": 0.03, "fp8": 0.08}
"""Largest relative error (Euclidean norm) of each precision."""


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    network = FeatureFusionBlock(96, 64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return export_uff_graphs(network.eval(), tmp_path_factory.mktemp("uff"), num_tokens=49)


def deployed(source: Path, target: str, precision: str, batch: Batch) -> onnx.ModelProto:
    # Ranges that hold all rows of the feed: what is left is rounding.
    calibration = [{"rows": part[None]} for part in feed_of(source, batch=2)["rows"]]
    return deployment_graph(
        source,
        target=target,
        precision=precision,
        batch=batch,
        calibration=calibration if precision in ("int8", "fp8") else (),
    )


def one_by_one(source: Path, feed: dict[str, NDArray]) -> NDArray:
    rows = feed["rows"]
    return np.concatenate([run_graph(source, {"rows": part[None]}) for part in rows])


def run_openvino(model: onnx.ModelProto, path: Path, feed: dict[str, NDArray]) -> NDArray:
    openvino = pytest.importorskip("openvino")
    onnx.save(model, path)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", exact)(feed)[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", list(BOUNDS))
@pytest.mark.parametrize("name", ["uff_point", "uff_rgb"])
def test_each_precision_answers_nearly_the_same(
    graphs: dict[str, Path], tmp_path: Path, name: str, precision: str, target: str
) -> None:
    """With a dynamic batch, which holds what batch 1 does."""
    source = graphs[name]
    model = deployed(source, target, precision, Batch(1, 2, 4))
    feed = feed_of(source, batch=2)
    if precision == "bf16":  # ONNX Runtime has no such kernels on a CPU
        result = run_openvino(model, tmp_path / "graph.onnx", feed)
    else:
        result = run_graph(model, feed)
    expected = one_by_one(source, feed)
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert error < BOUNDS[precision]
    assert (error > 1e-5) == (precision != "fp32")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_both_products_are_quantised(graphs: dict[str, Path], precision: str) -> None:
    model = deployed(graphs["uff_point"], "onnx", precision, Batch())
    nodes = model.graph.node
    products = {node.input[0] for node in nodes if node.op_type == "MatMul"}
    dequantised = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    assert len(products) == 2
    assert products <= dequantised


@pytest.mark.parametrize("precision", list(BOUNDS))
def test_tensorrt_builds_each_precision(
    graphs: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    """Norm, product with GELU, product: no more than a few kernels more."""
    reason = library_refusal("tensorrt-rtx")
    if reason is not None:
        pytest.skip(reason)
    model = deployed(graphs["uff_point"], "tensorrt-rtx", precision, Batch())
    engine = build_engine(
        model, tmp_path / "x.engine", target="tensorrt-rtx", precision=precision, sms=[89]
    )
    summary = summarize(engine.layers)
    assert summary.gemms == 2
    assert summary.kernels <= 7
