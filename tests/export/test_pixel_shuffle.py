"""Transposed convolutions as 1 x 1 convolutions and pixel shuffles: the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")

from export.conftest import run_graph  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mmad_fast.export.onnx_graph import export_graph  # noqa: E402
from mmad_fast.export.pixel_shuffle import shuffle_pixels  # noqa: E402


def model_of(attributes: dict[str, Any], *, side: int = 2, has_bias: bool = True) -> Any:
    """x (2, 3, 4, 5) -> y, by one transposed convolution to 6 channels."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((3, 6, side, side)), "b": rng.standard_normal(6)}
    names = list(arrays)[: 1 + has_bias]
    node = helper.make_node("ConvTranspose", ["x", *names], ["y"], **attributes)
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, 4, 5)),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd")),
    ]
    tensors = [numpy_helper.from_array(arrays[name].astype(np.float32), name) for name in names]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_windows_side_by_side(side: int, has_bias: bool) -> None:
    model = model_of({"strides": [side, side]}, side=side, has_bias=has_bias)
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 4, 5)).astype(np.float32)}
    expected = run_graph(model, feed)
    shuffle_pixels(model)
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == ["Conv", "DepthToSpace"]
    assert len(model.graph.initializer) == 1 + has_bias
    np.testing.assert_allclose(run_graph(model, feed), expected, atol=1e-6)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 1]},
        {"strides": [2, 2], "pads": [1, 0, 0, 0]},
        {"strides": [2, 2], "output_padding": [1, 1]},
        {"strides": [2, 2], "dilations": [2, 2]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ],
)
def test_others_stay_as_they_are(attributes: dict[str, Any]) -> None:
    model = model_of(attributes)
    shuffle_pixels(model)
    assert operators(model) == ["ConvTranspose"]


def test_a_module_keeps_its_answer_and_its_normalisation_is_folded(tmp_path: Path) -> None:
    """export_graph compares with torch."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.ConvTranspose2d(4, 3, 2, 2, bias=False), nn.BatchNorm2d(3), nn.ReLU())
    with torch.no_grad():
        module(torch.randn(8, 4, 6, 6))
    path = export_graph(
        module.eval(), {"x": torch.randn(1, 4, 5, 7)}, tmp_path / "g.onnx", output_name="y"
    )
    assert operators(onnx.load(path)) == ["Conv", "DepthToSpace", "Relu"]
