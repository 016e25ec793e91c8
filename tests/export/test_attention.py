"""Attention as one node or as products over all heads: the same result, nothing else accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from export.conftest import feed_of, run_graph  # noqa: E402

from mmad_fast.errors import InvalidInputError  # noqa: E402
from mmad_fast.export.attention import fuse_attention, merge_heads  # noqa: E402

BACKBONES = ("dino", "dinov2", "points")


def count(model: onnx.ModelProto, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph.node)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("form", [fuse_attention, merge_heads])
def test_the_result_stays_the_same(small_graphs: dict[str, Path], backbone: str, form) -> None:
    source = small_graphs[backbone]
    model = onnx.load(source)
    num_nodes = len(model.graph.node)
    assert form(model) == 2
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) < 0.7 * num_nodes
    feed = feed_of(source)
    expected = run_graph(source, feed)
    np.testing.assert_allclose(
        run_graph(model, feed), expected, rtol=0, atol=1e-6 * np.abs(expected).max()
    )


def test_fused_attention_is_one_node_per_block(small_graphs: dict[str, Path]) -> None:
    model = onnx.load(small_graphs["dino"])
    fuse_attention(model)
    assert count(model, "Attention") == 2
    assert count(model, "Split") == 2
    assert count(model, "Softmax") == count(model, "Slice") - 1 == 0  # the class token's slice
    assert [entry.version for entry in model.opset_import] == [23]


def test_merged_heads_keep_the_opset(small_graphs: dict[str, Path]) -> None:
    model = onnx.load(small_graphs["dino"])
    merge_heads(model)
    assert count(model, "Softmax") == count(model, "Split") == 2
    assert count(model, "Attention") == 0
    assert [entry.version for entry in model.opset_import] == [18]


def edit(model: onnx.ModelProto, op_type: str, change) -> None:
    """Applies the change to the first node of that kind behind the qkv product."""
    nodes = list(model.graph.node)
    start = next(i for i, node in enumerate(nodes) if node.op_type == "Squeeze") - 1
    change(next(node for node in nodes[start:] if node.op_type == op_type))


def swap_heads(node: onnx.NodeProto) -> None:
    first, second = node.input[0], node.input[1]
    node.input[0], node.input[1] = second, first


def softmax_of_queries(node: onnx.NodeProto) -> None:
    node.input[1] = node.input[0]


def drop_heads(node: onnx.NodeProto) -> None:
    del node.input[1:]


@pytest.mark.parametrize(
    ("op_type", "change", "words"),
    [
        ("Concat", swap_heads, "the heads of .* are not in order"),
        ("Concat", drop_heads, "has 2 of 3 heads"),
        ("Mul", lambda node: node.input.__setitem__(1, node.input[0]), "is not constant"),
        ("MatMul", softmax_of_queries, "stands Mul, not Transpose"),
        ("Softmax", lambda node: setattr(node, "op_type", "Sigmoid"), "stands Sigmoid"),
    ],
)
def test_another_attention_is_refused(
    small_graphs: dict[str, Path], op_type: str, change, words: str
) -> None:
    model = onnx.load(small_graphs["dino"])
    edit(model, op_type, change)
    with pytest.raises(InvalidInputError, match=f"{words}.* Fit the detector again"):
        fuse_attention(model)


@pytest.mark.parametrize("form", [fuse_attention, merge_heads])
def test_a_softmax_elsewhere_stays(form) -> None:
    """Prototypes are weighed by one over the channels, and maps attend to each other."""
    from onnx import TensorProto, helper, numpy_helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, 4)) for name in "xy"]
    nodes = [
        helper.make_node("Softmax", ["x"], ["weights"], axis=1),
        helper.make_node("Transpose", ["weights"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["weights", "scale"], ["queries"]),
        helper.make_node("MatMul", ["queries", "keys"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["attention"], axis=-1),
        helper.make_node("MatMul", ["attention", "weights"], ["y"]),
    ]
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [scale]))
    assert form(model) == 0
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in nodes]
