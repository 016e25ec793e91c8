"""What is said of a graph beforehand, compared with what ONNX and ONNX Runtime make of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmad_fast.engines import graph_check
from mmad_fast.engines.graph_check import check_onnx_graph
from mmad_fast.engines.onnx_file import read_onnx_graph
from mmad_fast.engines.operators import ATTRIBUTE_TYPES, RULES
from mmad_fast.errors import ArtifactError

FLOAT = np.float32


def value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    shape: list[int | str],
    output: list[int | str],
    **constants: Any,
) -> Path:
    """x of a shape -> y of a shape."""
    tensors = [numpy_helper.from_array(np.asarray(array), n) for n, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [value("x", shape)], [value("y", output)], tensors)
    opsets = [helper.make_opsetid("", 23)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


IMAGE, TOKENS = [1, 4, 9, 10], [2, 6, 8]
CASES: dict[str, tuple[list[int], dict[str, Any], dict[str, Any]]] = {
    "Transpose": (TOKENS, {"perm": [2, 0, 1]}, {}),
    "Transpose of all": (TOKENS, {}, {}),
    "Reshape": (TOKENS, {}, {"c": np.array([0, -1, 4])}),
    "Flatten": (IMAGE, {"axis": 2}, {}),
    "Squeeze": (IMAGE, {}, {"c": np.array([-4])}),
    "Unsqueeze": (TOKENS, {}, {"c": np.array([0, -1])}),
    "Slice": (
        IMAGE,
        {},
        {
            "c": np.array([1, -4]),
            "d": np.array([2**62, -1]),
            "e": np.array([1, 3]),
            "f": np.array([2, 1]),
        },
    ),
    "Pad": (TOKENS, {}, {"c": np.array([0, 1, 0, 0, 2, 3])}),
    "Pad by the edge": (IMAGE, {"mode": "edge"}, {"c": np.array([0, 0, 2, 1, 0, 0, 1, 2])}),
    "Gather": (IMAGE, {"axis": 1}, {"c": np.array([3, 0, -1, 2, 0])}),
    "Gather of many": (IMAGE, {"axis": 2}, {"c": np.arange(368) % 9}),
    "Atan": (TOKENS, {}, {}),
    "Exp": (TOKENS, {}, {}),
    "Clip": (TOKENS, {}, {"c": np.array(-1, FLOAT), "d": np.array(1, FLOAT)}),
    "LeakyRelu": (TOKENS, {"alpha": 0.2}, {}),
    "Expand": (TOKENS, {}, {"c": np.array([3, 1, 1, 8])}),
    "ReduceL2": (IMAGE, {"keepdims": 1}, {"c": np.array([1])}),
    "ReduceMax": (IMAGE, {"keepdims": 0}, {"c": np.array([1, -1])}),
    "ReduceMean": (IMAGE, {}, {"c": np.array([2])}),
    "ReduceSum": (IMAGE, {"keepdims": 0}, {}),
    "Softmax": (TOKENS, {"axis": 1}, {}),
    "Gelu": (TOKENS, {}, {}),
    "Erf": (TOKENS, {}, {}),
    "Cast": (TOKENS, {"to": 1}, {}),
    "LayerNormalization": (TOKENS, {}, {"c": np.ones(8, FLOAT)}),
    "Add": (TOKENS, {}, {"c": np.ones((5, 1, 6, 1), FLOAT)}),
    "MatMul": (TOKENS, {}, {"c": np.ones((3, 1, 8, 7), FLOAT)}),
    "MatMul by a vector": (TOKENS, {}, {"c": np.ones(8, FLOAT)}),
    "Gemm": ([5, 8], {"transA": 1, "transB": 1}, {"c": np.ones((7, 5), FLOAT)}),
    "Concat": (TOKENS, {"axis": -1}, {"c": np.ones((2, 6, 3), FLOAT)}),
    "Conv": (
        IMAGE,
        {"strides": [2, 3], "pads": [1, 0, 2, 1], "dilations": [2, 1], "group": 2},
        {"c": np.ones((6, 2, 3, 2), FLOAT)},
    ),
    "DepthToSpace": (IMAGE, {"blocksize": 2, "mode": "CRD"}, {}),
    "AveragePool": (IMAGE, {"kernel_shape": [3, 2], "strides": [2, 2]}, {}),
    "MaxPool": (IMAGE, {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}, {}),
    "MaxPool as torch writes it": (
        IMAGE,
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 0, "storage_order": 0},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes_are_those_of_onnx_runtime(case: str, tmp_path: Path) -> None:
    import onnxruntime

    shape, attributes, constants = CASES[case]
    op_type = case.split()[0]
    node = helper.make_node(op_type, ["x", *constants], ["y"], **attributes)
    anything = save(tmp_path / "any.onnx", [node], shape, [f"a{i}" for i in range(9)], **constants)
    model = onnx.load(anything)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(0).normal(0, 1, shape).astype(FLOAT)
    found = session.run(["y"], {"x": x})[0].shape
    path = save(tmp_path / "g.onnx", [node], shape, list(found), **constants)
    assert check_onnx_graph(path).live_numbers >= math.prod(found)
    wrong = save(
        tmp_path / "w.onnx", [node], shape, [*found[:-1], (found or (0,))[-1] + 1], **constants
    )
    with pytest.raises(ArtifactError, match=r"its output 'y' is .* as it says"):
        check_onnx_graph(wrong)


@pytest.mark.parametrize("indices", [[0, 4], [-5, 1], [[0, 1]]])
def test_a_gather_takes_what_is_there(indices: list[Any], tmp_path: Path) -> None:
    """Which of the engines reads beyond an array is not asked."""
    node = helper.make_node("Gather", ["x", "c"], ["y"], axis=1)
    path = save(tmp_path / "g.onnx", [node], IMAGE, [1, 2, 9, 10], c=np.array(indices))
    with pytest.raises(ArtifactError, match=r"Gather takes what \(1, 4, 9, 10\) does not have"):
        check_onnx_graph(path)


def test_pads_of_other_kinds_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Pad", ["x", "c"], ["y"], mode="reflect")
    path = save(tmp_path / "g.onnx", [node], TOKENS, [2, 7, 8], c=np.array([0, 1, 0, 0, 0, 0]))
    with pytest.raises(ArtifactError, match="in none of constant, edge"):
        check_onnx_graph(path)


@pytest.mark.parametrize("blocksize", [0, 3])
def test_blocks_of_channels_that_do_not_fit_are_refused(blocksize: int, tmp_path: Path) -> None:
    node = helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=blocksize)
    path = save(tmp_path / "g.onnx", [node], IMAGE, [1, 1, 18, 20])
    with pytest.raises(ArtifactError, match="DepthToSpace of"):
        check_onnx_graph(path)


def test_a_split_and_an_attention(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["q", "k", "v"], axis=1, num_outputs=3),
        helper.make_node("Attention", ["q", "k", "v"], ["y"], scale=0.5),
    ]
    path = save(tmp_path / "g.onnx", nodes, [1, 6, 10, 4], [1, 2, 10, 4])
    size = check_onnx_graph(path)
    assert size == (240 + 80 + 2 * 2 * 10 * 10, 0, 240 + 2 * 80 * 10)


def test_attention_over_many_tokens_is_too_large(tmp_path: Path) -> None:
    """Its output is small; its weights are not."""
    nodes = [helper.make_node("Attention", ["x", "x", "x"], ["y"])]
    path = save(tmp_path / "g.onnx", nodes, [1, 1, 2**18, 1], [1, 1, 2**18, 1])
    with pytest.raises(ArtifactError, match="live numbers up to Attention"):
        check_onnx_graph(path)


def test_what_is_held_ends_with_its_last_reader(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x" if at == 0 else f"a{at - 1}"], [f"a{at}"]) for at in range(9)
    ]
    nodes.append(helper.make_node("Identity", ["a8"], ["y"]))
    assert check_onnx_graph(save(tmp_path / "g.onnx", nodes, [1, 100], [1, 100])) == (200, 0, 1000)


def test_every_rule_is_of_an_operator_that_onnx_knows() -> None:
    for name in RULES:
        schema = onnx.defs.get_schema(name, max_inclusive_version=23)
        unknown = set(RULES[name].attributes) - set(schema.attributes) - {"axes"}
        assert not unknown, name
        for attribute in set(RULES[name].attributes) - {"axes"}:
            types = {int: "INT", float: "FLOAT", str: "STRING", tuple: "INTS"}
            wanted = types[ATTRIBUTE_TYPES.get(attribute, int)]
            assert schema.attributes[attribute].type.name == wanted, (name, attribute)


def test_the_reader_reads_what_onnx_wrote(tiny_artifact: Path) -> None:
    for name in ("rgb", "points"):
        path = tiny_artifact / f"{name}.onnx"
        model, graph = onnx.load(path), read_onnx_graph(path)
        assert [node.op_type for node in graph.nodes] == [n.op_type for n in model.graph.node]
        assert {t.name: tuple(t.dims) for t in model.graph.initializer} == {
            name: tensor.shape for name, tensor in graph.tensors.items()
        }
        for node, read in zip(model.graph.node, graph.nodes, strict=True):
            assert (list(node.input), list(node.output)) == (list(read.inputs), list(read.outputs))
            for attribute in node.attribute:
                wanted = helper.get_attribute_value(attribute)
                shown = tuple(wanted) if isinstance(wanted, list) else wanted
                assert read.attributes[attribute.name] == shown


def test_small_constants_however_they_are_stored(tmp_path: Path) -> None:
    shape = helper.make_tensor("c", TensorProto.INT64, [2], [-1, 4])
    assert not shape.raw_data
    path = save(
        tmp_path / "g.onnx", [helper.make_node("Reshape", ["x", "c"], ["y"])], [2, 6], [3, 4]
    )
    model = onnx.load(path)
    model.graph.initializer.append(shape)
    onnx.save(model, path)
    assert read_onnx_graph(path).tensors["c"].values == (-1, 4)
    check_onnx_graph(path)
    model.graph.initializer[0].int64_data.append(3)
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="does not hold the 2 numbers of its shape"):
        check_onnx_graph(path)


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def _located_only(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def _value_attribute(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(1, FLOAT), "t")
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=tensor))


def _branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["k"], then_branch=inner))


def _sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def _training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def _function(model: onnx.ModelProto) -> None:
    model.functions.add()


def _second_domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def _float64_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _second_writer(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))


def _many_axes(model: onnx.ModelProto) -> None:
    axes = numpy_helper.from_array(np.arange(7), "axes")
    model.graph.initializer.append(axes)
    for at in range(1000):
        source = "x" if at == 0 else f"z{at - 1}"
        model.graph.node.append(helper.make_node("Unsqueeze", [source, "axes"], [f"z{at}"]))


def _many_parts(model: onnx.ModelProto) -> None:
    for _ in range(20):
        model.graph.node.append(helper.make_node("Concat", ["x"] * 30_000, ["z"]))


def _split_of_many(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Split", ["x"], ["z"], axis=1, num_outputs=2**40))


def _attribute_of_another_type(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Transpose", ["x"], ["z"], perm=1))


def _axis_as_text(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Softmax", ["x"], ["z"], axis="last"))


def _conv_of_a_vector(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Conv", ["c", "c"], ["z"]))


def _conv_without_channels(model: onnx.ModelProto) -> None:
    for name, shape in (("image", (1, 1, 2, 2)), ("weight", (0, 1, 1, 1))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, FLOAT), name))
    model.graph.node.append(helper.make_node("Conv", ["image", "weight"], ["z"]))


def _pool_beyond_the_edge(model: onnx.ModelProto) -> None:
    image = numpy_helper.from_array(np.ones((1, 1, 4, 4), FLOAT), "image")
    model.graph.initializer.append(image)
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    model.graph.node.append(helper.make_node("MaxPool", ["image"], ["z"], **attributes))


def _negative_axis(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([-(2**40), 4]), "shape"))
    model.graph.node.append(helper.make_node("Expand", ["x", "shape"], ["z"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_attribute_of_another_type, "Transpose has the perm 1"),
        (_axis_as_text, "Softmax has the axis 'last'"),
        (_conv_of_a_vector, "Conv of"),
        (_conv_without_channels, "Conv of"),
        (_pool_beyond_the_edge, "MaxPool has windows beyond the edge"),
        (_negative_axis, "'z' has an axis of -1099511627776"),
        (_external, r"weights in another file \(external data\), which none of ours has"),
        (_located_only, "the constant 'c' lies in another file"),
        (_value_attribute, "an array inside, which none of ours has"),
        (_branch, "a graph inside, which none of ours has"),
        (_sparse, "sparse constants, which none of ours has"),
        (_training, "training, which none of ours has"),
        (_function, "functions, which none of ours has"),
        (_second_domain, "operators of '', 'com.microsoft'; only ONNX's own"),
        (_float64_input, "'x' is no float32 array"),
        (_second_writer, "'y' is another array's name"),
        (_many_axes, "'z0' has 9 axes"),
        (_many_parts, "has more than 524288 fields"),
        (_split_of_many, "Split makes 1099511627776 outputs of 1"),
    ],
)
def test_what_is_refused(
    change: Callable[[onnx.ModelProto], None], words: str, tmp_path: Path
) -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["y"])]
    path = save(tmp_path / "g.onnx", nodes, [1, 4], [1, 4], c=np.ones(4, FLOAT))
    check_onnx_graph(path)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=f"g.onnx: cannot be loaded as a detector's.*({words})"):
        check_onnx_graph(path)


def test_an_integer_beyond_its_type_is_refused(tmp_path: Path) -> None:
    """Protobuf's own reader cuts it to 32 bits: the engine would see another number."""
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = save(tmp_path / "g.onnx", nodes, [1, 4], [1, 4])
    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("k", TensorProto.INT32, [1], [2**30]))
    onnx.save(model, path)
    check_onnx_graph(path)
    content, varint = path.read_bytes(), b"\x80\x80\x80\x80"
    assert content.count(varint + b"\x04") == 1
    path.write_bytes(content.replace(varint + b"\x04", varint + b"\x14"))
    with pytest.raises(ArtifactError, match="'k' holds 5368709120, which is no int32"):
        check_onnx_graph(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\x0b", "begins no field"),
        (b"\x3a\xff\xff\xff\xff\x0f", "ends behind its message"),
        (b"\x3a" + b"\xff" * 11, "has no end"),
        (b"\x3a", "ends within a number"),
        (b"\x3a\x00\x3a\x00", "has graph twice"),
        (b"\x08\x0a", "holds no graph|no set"),
        (b"\x42\x02\x10\x12", "holds no graph"),
        (b"\x42\x02\x10\x12\x3a\x03\x12\x01\xff", "utf-8"),
    ],
)
def test_bytes_that_are_no_graph(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=f"cannot be loaded as a detector's graph: .*({words})"):
        check_onnx_graph(tmp_path / "g.onnx")


@pytest.mark.parametrize(
    ("limit", "words"),
    [("MAX_LIVE_NUMBERS", "needs 24 live numbers"), ("MAX_MULTIPLY_ADDS", "32 multiply adds")],
)
def test_limits(limit: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("MatMul", ["x", "c"], ["y"])]
    path = save(tmp_path / "g.onnx", nodes, [4, 4], [4, 2], c=np.ones((4, 2), FLOAT))
    monkeypatch.setattr(graph_check, limit, 24 if limit == "MAX_LIVE_NUMBERS" else 32)
    assert check_onnx_graph(path) == (24, 0, 32)
    monkeypatch.setattr(graph_check, limit, 23 if limit == "MAX_LIVE_NUMBERS" else 31)
    with pytest.raises(ArtifactError, match=words):
        check_onnx_graph(path)
