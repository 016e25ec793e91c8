"""Half precision: strongly typed, close, float32 outside, nothing beyond the range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from export.conftest import feed_of, run_graph  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from mmad_fast.errors import InvalidInputError  # noqa: E402
from mmad_fast.export.attention import merge_heads  # noqa: E402
from mmad_fast.export.precision import to_precision  # noqa: E402

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def half_model(source: Path, precision: str) -> onnx.ModelProto:
    model = onnx.load(source)
    merge_heads(model)
    to_precision(model, precision)
    return model


@pytest.mark.parametrize("backbone", ["dino", "dinov2", "points"])
def test_fp16_is_close_in_onnx_runtime(small_graphs: dict[str, Path], backbone: str) -> None:
    source = small_graphs[backbone]
    feed = feed_of(source)
    expected = run_graph(source, feed)
    result = run_graph(half_model(source, "fp16"), feed)
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 2e-3  # weights are rounded by 2^-12 on average


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_tensor_inside_is_of_the_precision(
    small_graphs: dict[str, Path], precision: str
) -> None:
    model = half_model(small_graphs["dinov2"], precision)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    assert {value.type.tensor_type.elem_type for value in inferred.value_info} == {TYPES[precision]}
    assert {value.type.tensor_type.elem_type for value in (*inferred.input, *inferred.output)} == {
        TensorProto.FLOAT
    }
    assert {tensor.data_type for tensor in inferred.initializer} == {
        TYPES[precision],
        TensorProto.INT64,
    }
    assert [value.name for value in (*inferred.input, *inferred.output)] == ["image", "tokens"]
    assert sum(node.op_type == "Cast" for node in inferred.node) == 2


def linear(weight: np.ndarray) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2)) for name in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    tensors = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(("precision", "step"), [("fp16", 2**-10), ("bf16", 2**-7)])
def test_weights_are_rounded_to_nearest(precision: str, step: float) -> None:
    model = linear(np.array([[1 + 0.51 * step, 0], [0, 1 + 0.49 * step]], np.float32))
    to_precision(model, precision)
    weight = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32)
    np.testing.assert_array_equal(weight, [[1 + step, 0], [0, 1]])
    result = ReferenceEvaluator(model).run(None, {"x": np.ones((1, 2), np.float32)})[0]
    np.testing.assert_array_equal(result, np.array([[1 + step, 1]], np.float32))
    assert result.dtype == np.float32


def test_weights_beyond_fp16_are_refused_and_fit_bf16() -> None:
    weight = np.array([[1, 65520], [0, 1]], np.float32)  # the first that rounds to infinity
    with pytest.raises(InvalidInputError, match=r"'weight' holds 6.552e\+04.*precision 'bf16'"):
        to_precision(linear(weight), "fp16")
    to_precision(linear(weight), "bf16")
    to_precision(linear(np.float32([[1, 65519], [0, 1]])), "fp16")


def test_another_precision_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'fp64'; it must be one of fp16, bf16"):
        to_precision(linear(np.eye(2, dtype=np.float32)), "fp64")
