"""A float32 graph in half precision, strongly typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmad_fast.errors import InvalidInputError
from mmad_fast.export.opset import require_opset

if TYPE_CHECKING:
    import onnx

BFLOAT16_OPSET = 22
"""The first whose convolution takes bfloat16."""


def to_precision(model: onnx.ModelProto, precision: str) -> None:
    """Turns weights and arithmetic of the graph into fp16 or bf16.

    The graph's inputs and outputs stay float32: each has a Cast behind or before it. What a
    graph of these types leaves open, the accumulation in products, norms and softmax, is the
    engine's; the LayerNormalization nodes ask for float32 (`stash_type`).

    Args:
        model: In float32; changed in place.
        precision: "fp16" or "bf16".

    Raises:
        InvalidInputError: the precision is another one, or a weight is beyond its range.
    """
    from onnx import TensorProto, helper

    types = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    if precision not in types:
        raise InvalidInputError(f"precision is {precision!r}; it must be one of {', '.join(types)}")
    if precision == "bf16":
        require_opset(model, BFLOAT16_OPSET)
    graph, half = model.graph, types[precision]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(_cast(tensor, half))
    inner = {value.name: f"{value.name}_{precision}" for value in (*graph.input, *graph.output)}
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = inner.get(name, name)
    first = [
        helper.make_node("Cast", [value.name], [inner[value.name]], f"cast_{value.name}", to=half)
        for value in graph.input
    ]
    last = [
        helper.make_node(
            "Cast", [inner[value.name]], [value.name], f"cast_{value.name}", to=TensorProto.FLOAT
        )
        for value in graph.output
    ]
    nodes = [*first, *graph.node, *last]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _cast(tensor: onnx.TensorProto, data_type: int) -> onnx.TensorProto:
    """The float32 tensor in another type, rounded to nearest."""
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    with np.errstate(over="ignore"):
        cast = values.astype(helper.tensor_dtype_to_np_dtype(data_type))
    if not np.isfinite(cast.astype(np.float32)).all():
        raise InvalidInputError(
            f"{tensor.name!r} holds {largest:.4g}, which is beyond the range of half precision "
            "(fp16 ends at 65504); export with precision 'bf16' or 'fp32'"
        )
    return numpy_helper.from_array(cast, tensor.name)
