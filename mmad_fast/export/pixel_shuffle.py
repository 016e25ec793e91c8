"""Transposed convolutions as products and pixel shuffles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmad_fast.export.folding import remove_unused

if TYPE_CHECKING:
    import onnx


def shuffle_pixels(model: onnx.ModelProto) -> None:
    """Writes each transposed convolution whose windows lie side by side as a 1 x 1 convolution with
    all numbers of a window as channels, and a DepthToSpace that puts them in order.

    The same products and sums. Engines have no transposed convolution of 8 bits, and OpenVINO
    computes some of them in float32 where it is told bfloat16.

    Args:
        model: Its weights are initialisers; changed in place.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        side = _window_side(node, constants)
        if side is None:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])  # (C, D, side, side)
        arrays = {"weight": weight.transpose(1, 2, 3, 0).reshape(-1, weight.shape[0], 1, 1)}
        if len(node.input) > 2:
            bias = numpy_helper.to_array(constants[node.input[2]])
            arrays["bias"] = np.repeat(bias, side * side)
        made, (output,) = node.output[0] + "_before_shuffle", node.output
        names = [f"{made}_{kind}" for kind in arrays]
        graph.initializer.extend(map(numpy_helper.from_array, arrays.values(), names))
        nodes += [
            helper.make_node("Conv", [node.input[0], *names], [made], kernel_shape=[1, 1]),
            helper.make_node("DepthToSpace", [made], [output], blocksize=side, mode="CRD"),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused(model)


def _window_side(node: onnx.NodeProto, constants: Mapping[str, Any]) -> int | None:
    """The side of the windows; None of another node, or where they overlap or leave gaps."""
    from onnx import helper

    if node.op_type != "ConvTranspose" or not constants.keys() >= set(node.input[1:]):
        return None
    weight = constants[node.input[1]].dims
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    side = weight[-1]
    is_plain = (
        list(weight[2:]) == [side, side]
        and list(attributes.get("strides", ())) == [side, side]
        and attributes.get("group", 1) == 1
        and set(attributes.get("dilations", (1,))) == {1}
        and not any((*attributes.get("pads", ()), *attributes.get("output_padding", ())))
        and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    )
    return side if is_plain else None
