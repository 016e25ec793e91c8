"""What a graph costs, counted from its nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class GraphCost:
    """The size of a graph.

    Attributes:
        multiply_adds: Multiplications with addition in all products and convolutions, attention's
            included, for one input of the batch; half of what is often called FLOPs.
        convolution_multiply_adds: Those of the convolutions, without patch embeddings.
        parameters: Numbers in the weights. Shapes, single factors (of GELU, say), and the scales
            and zero points of quantised tensors do not count.
    """

    multiply_adds: int
    convolution_multiply_adds: int
    parameters: int


def graph_cost(model: onnx.ModelProto) -> GraphCost:
    """The cost of the graph; of a dynamic batch, that of one input."""
    from onnx import TensorProto

    shapes = _shapes(model)
    scales = {
        name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    weights = [
        tensor
        for tensor in model.graph.initializer
        if tensor.dims and tensor.data_type != TensorProto.INT64 and tensor.name not in scales
    ]
    return GraphCost(
        multiply_adds=sum(_multiply_adds(node, shapes) for node in model.graph.node),
        convolution_multiply_adds=sum(
            _multiply_adds(node, shapes)
            for node in model.graph.node
            if node.op_type == "Conv" and not _is_patch_embedding(node, shapes)
        ),
        parameters=sum(math.prod(tensor.dims) for tensor in weights),
    )


def _multiply_adds(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    """The multiplications of one node for one input; 0 for what is no product."""
    if node.op_type in ("MatMul", "Gemm"):
        return math.prod(shapes[node.output[0]][1:]) * shapes[node.input[0]][-1]
    if node.op_type == "Conv":
        return math.prod(shapes[node.output[0]][1:]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "Attention":
        queries, keys = shapes[node.input[0]], shapes[node.input[1]]
        return 2 * math.prod(queries[1:]) * keys[-2]
    return 0


def _is_patch_embedding(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> bool:
    """Whether the windows of a convolution lie side by side: a product per patch."""
    kernel = shapes[node.input[1]][2:]
    strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [])
    return kernel == strides and max(kernel) > 1


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The shape of each tensor; 0 for an open axis, which is always the first."""
    from onnx import TensorProto, helper, shape_inference

    # Inferred of a graph whose weights are inputs: the inference serialises all that it gets.
    graph = model.graph
    sizes = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT64]
    weights = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type != TensorProto.INT64
    ]
    light = helper.make_graph(graph.node, graph.name, [*graph.input, *weights], graph.output, sizes)
    inferred = shape_inference.infer_shapes(
        helper.make_model(light, opset_imports=model.opset_import, ir_version=model.ir_version)
    ).graph
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in sizes}
