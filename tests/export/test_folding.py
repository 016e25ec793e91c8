"""Folded graphs: the same result, nothing foldable and nothing unused left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from export.conftest import run_graph  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mmad_fast.export.folding import fold_constants  # noqa: E402

BACKBONES = ("dino", "dinov2", "points")


def model_of(nodes: list, constants: dict) -> onnx.ModelProto:
    """x (2, 3) -> y (2, 3)."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3)) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def foldable(model: onnx.ModelProto) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.op_type for node in model.graph.node if constants.issuperset(node.input)]


def test_a_chain_on_constants_becomes_one_constant() -> None:
    rng = np.random.default_rng(0)
    rows, shift = rng.normal(size=(5, 3)), rng.normal(size=(1, 3))
    constants = {
        "rows": rows.astype(np.float32),
        "shift": shift.astype(np.float32),
        **{name: np.array([size], np.int64) for name, size in (("one", 1), ("three", 3))},
        "unused": np.zeros(7, np.float32),
    }
    nodes = [
        helper.make_node("Constant", [], ["axis"], value_ints=[0]),
        helper.make_node("Slice", ["rows", "one", "three", "axis"], ["part"]),
        helper.make_node("Add", ["part", "shift"], ["sum"]),
        helper.make_node("Add", ["x", "sum"], ["y"]),
        helper.make_node("Mul", ["x", "shift"], ["read by nobody"]),
    ]
    model = model_of(nodes, constants)
    feed = {"x": rng.normal(size=(2, 3)).astype(np.float32)}
    expected = run_graph(model, feed)
    fold_constants(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Add"]
    assert [tensor.name for tensor in model.graph.initializer] == ["sum"]
    np.testing.assert_array_equal(run_graph(model, feed), expected)


def test_quantised_weights_stay_quantised() -> None:
    constants = {
        "w": np.array([[1, 2, 3]], np.int8),
        "scale": np.float32(0.5),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["weight"]),
        helper.make_node("Add", ["x", "weight"], ["y"]),
    ]
    model = model_of(nodes, constants)
    fold_constants(model)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "Add"]


def test_an_output_that_depends_on_no_input_stays() -> None:
    nodes = [helper.make_node("Neg", ["w"], ["y"])]
    model = model_of(nodes, {"w": np.ones((2, 3), np.float32)})
    fold_constants(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Neg"]


def test_weights_are_not_copied() -> None:
    """Copies would live as long as the graph: protobuf frees what is taken out with the whole."""
    nodes = [helper.make_node("Mul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "s"], ["y"])]
    nodes.insert(0, helper.make_node("Neg", ["t"], ["s"]))
    ones = {name: np.ones((2, 3), np.float32) for name in ("unused", "t", "w")}
    model = model_of(nodes, ones)
    weight = model.graph.initializer[2]
    fold_constants(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["w", "s"]
    assert model.graph.initializer[0] is weight


@pytest.mark.parametrize("backbone", BACKBONES)
def test_fitted_graphs_are_folded(small_graphs: dict[str, Path], backbone: str) -> None:
    model = onnx.load(small_graphs[backbone])
    assert foldable(model) == []
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    assert [entry.version for entry in model.opset_import] == [18]
    before = model.SerializeToString()
    fold_constants(model)
    assert model.SerializeToString() == before
