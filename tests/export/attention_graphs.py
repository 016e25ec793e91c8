"""Small transformer graphs, with attention as graphs exported for TensorRT have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DIM, HEADS, TOKENS = 64, 2, 49
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class GraphBuilder:
    """Collects nodes and weights; each method adds a layer and returns the name of its output.

    Args:
        precision: "fp32", "fp16" or "bf16": of the whole graph but its input and output; "int8" or
            "fp8": fp16, with products by constant matrices between Q/DQ pairs.
    """

    def __init__(self, precision: str) -> None:
        self.quantized = {
            "int8": TensorProto.INT8,
            "fp8": TensorProto.FLOAT8E4M3FN,
        }.get(precision)
        self.type = TYPES["fp16" if self.quantized else precision]
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def constant(self, values: NDArray, data_type: int | None = None) -> str:
        name = f"constant_{len(self.weights)}"
        data_type = self.type if data_type is None else data_type
        numpy_type = helper.tensor_dtype_to_np_dtype(data_type)
        self.weights.append(numpy_helper.from_array(values.astype(numpy_type), name))
        return name

    def shape(self, *sizes: int) -> str:
        return self.constant(np.array(sizes), TensorProto.INT64)

    def normal(self, *shape: int) -> NDArray:
        return self.random.normal(0, shape[0] ** -0.5, shape)

    def quantize(self, tensor: str, scale: NDArray, **attributes: int) -> str:
        """The tensor behind a Q/DQ pair; nothing where the graph is not quantised."""
        if self.quantized is None:
            return tensor
        zero = self.constant(np.zeros(scale.shape), self.quantized)
        parameters = (self.constant(scale), zero)
        rounded = self.node("QuantizeLinear", tensor, *parameters, **attributes)
        return self.node("DequantizeLinear", rounded, *parameters, **attributes)

    def linear(self, tensor: str, inputs: int, outputs: int) -> str:
        weight = self.quantize(
            self.constant(self.normal(inputs, outputs)), np.full(outputs, 0.02), axis=1
        )
        product = self.node("MatMul", self.quantize(tensor, np.array(0.05)), weight)
        return self.node("Add", product, self.constant(self.normal(outputs)))

    def norm(self, tensor: str, dim: int) -> str:
        scale, bias = self.constant(np.ones(dim)), self.constant(np.zeros(dim))
        return self.node("LayerNormalization", tensor, scale, bias, axis=-1, epsilon=1e-6)

    def gelu(self, tensor: str) -> str:
        half, root = self.constant(np.array(0.5)), self.constant(np.array(2.0**0.5))
        error = self.node("Erf", self.node("Div", tensor, root))
        twice = self.node("Mul", tensor, self.node("Add", error, self.constant(np.array(1.0))))
        return self.node("Mul", twice, half)

    def attention(self, tensor: str, batch: int, dim: int, heads: int) -> str:
        fused = self.linear(tensor, dim, 3 * dim)
        rows = self.node("Reshape", fused, self.shape(batch, TOKENS, 3 * heads, dim // heads))
        ordered = self.node("Transpose", rows, perm=[0, 2, 1, 3])
        parts = [f"{ordered}_{part}" for part in ("query", "key", "value")]
        self.nodes.append(
            helper.make_node("Split", [ordered], parts, f"{ordered}_split", axis=1, num_outputs=3)
        )
        scale = (dim // heads) ** -0.5
        query = self.node("Mul", parts[0], self.constant(np.array(scale)))
        scores = self.node("MatMul", query, self.node("Transpose", parts[1], perm=[0, 1, 3, 2]))
        attended = self.node("MatMul", self.node("Softmax", scores, axis=-1), parts[2])
        merged = self.node("Transpose", attended, perm=[0, 2, 1, 3])
        merged = self.node("Reshape", merged, self.shape(batch, TOKENS, dim))
        return self.linear(merged, dim, dim)

    def block(self, tokens: str, batch: int, dim: int, heads: int) -> str:
        attended = self.attention(self.norm(tokens, dim), batch, dim, heads)
        tokens = self.node("Add", tokens, attended)
        hidden = self.gelu(self.linear(self.norm(tokens, dim), dim, 4 * dim))
        return self.node("Add", tokens, self.linear(hidden, 4 * dim, dim))


def transformer(
    precision: str = "fp32",
    *,
    blocks: int = 2,
    batch: int | str = 1,
    dim: int = DIM,
    heads: int = HEADS,
) -> onnx.ModelProto:
    """tokens (B, 49, dim) -> features (B, 49, dim), both float32.

    Args:
        precision: See GraphBuilder.
        blocks: How many.
        batch: Its size, or a name: then it is dynamic.
        dim: Channels.
        heads: Attention heads.
    """
    graph = GraphBuilder(precision)
    is_float = graph.type == TensorProto.FLOAT
    tokens = "tokens" if is_float else graph.node("Cast", "tokens", to=graph.type)
    for _ in range(blocks):
        tokens = graph.block(tokens, batch if isinstance(batch, int) else -1, dim, heads)
    graph.node("Cast", graph.norm(tokens, dim), to=TensorProto.FLOAT)
    graph.nodes[-1].output[0] = "features"
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, TOKENS, dim])
        for name in ("tokens", "features")
    ]
    return helper.make_model(
        helper.make_graph(graph.nodes, "transformer", tensors[:1], tensors[1:], graph.weights),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    )
