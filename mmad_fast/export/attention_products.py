"""Attention as products and a softmax, for libraries that do not know the operator.

TensorRT's parser reads Attention since 10.14. JetPack 6 has an older one, whose compiler finds this
pattern and makes one kernel of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmad_fast.errors import InvalidInputError

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""The last that TensorRT 10.0 reads; no operator of an exported graph has changed since 19."""


def attention_as_products(graph: bytes) -> bytes:
    """The serialised graph with each Attention node of (B, T, C) tensors taken apart.

    Args:
        graph: A serialised onnx.ModelProto, as `deployment_graph` makes it.

    Raises:
        InvalidInputError: an Attention node has a mask, or other than three inputs of that shape.
    """
    import onnx
    from onnx import helper

    model = onnx.load_model_from_string(graph)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Attention":
            constants, products = _products(node, types.get(node.input[0], onnx.TensorProto.FLOAT))
            model.graph.initializer.extend(constants)
            nodes.extend(products)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    onnx.checker.check_model(model)
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _products(
    node: onnx.NodeProto, data_type: int
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """(constants, nodes) that compute what an Attention node of this type does."""
    from onnx import TensorProto, helper

    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    heads, scale = options.get("q_num_heads"), options.get("scale")
    if len(node.input) != 3 or not heads or scale is None or options.get("is_causal"):
        raise InvalidInputError(
            f"the Attention node {node.name!r} has {len(node.input)} inputs and the attributes "
            f"{sorted(options)}; query, key and value (B, T, C), q_num_heads and scale are needed"
        )
    own = node.output[0]
    constants = [
        helper.make_tensor(f"{own}_heads", TensorProto.INT64, [4], [0, 0, heads, -1]),
        helper.make_tensor(f"{own}_rows", TensorProto.INT64, [3], [0, 0, -1]),
        helper.make_tensor(f"{own}_scale", data_type, [], [scale]),
    ]
    split, merge, factor = (constant.name for constant in constants)
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{own}_part_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], f"{name}_node", **attributes))
        return name

    query, key, value = (  # (B, H, T, D), but key (B, H, D, T)
        add("Transpose", add("Reshape", tensor, split), perm=perm)
        for tensor, perm in zip(node.input, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scores = add("MatMul", add("Mul", query, factor), key)
    attended = add("MatMul", add("Softmax", scores, axis=-1), value)
    add("Reshape", add("Transpose", attended, perm=[0, 2, 1, 3]), merge, output=own)
    return constants, nodes
