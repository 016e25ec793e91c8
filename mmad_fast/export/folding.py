"""Constant folding: what follows from the weights alone is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

NEVER_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Folded, the weights of a quantised graph would be float32 again."""


def fold_constants(model: onnx.ModelProto) -> None:
    """Replaces nodes that read initialisers only by their results; takes out what is unused.

    In the backbones these are the slices of the position embedding and the class token. The
    results are those of onnx's reference implementation, to the bit: nodes of this kind move
    and add, they do not sum.

    Args:
        model: Its nodes in topological order, as ONNX demands; changed in place. It draws no
            random numbers (`export_graph` refuses a graph that does).
    """
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    opset = {entry.domain: entry.version for entry in model.opset_import}[""]
    constants = {initializer.name: initializer for initializer in graph.initializer}
    outputs = {value.name for value in graph.output}
    results = []
    for node in graph.node:
        is_foldable = (
            node.op_type not in NEVER_FOLDED
            and all(not name or name in constants for name in node.input)
            and outputs.isdisjoint(node.output)
        )
        if not is_foldable:
            continue
        feed = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
        arrays = ReferenceEvaluator(node, opsets={"": opset}).run(None, feed)
        for name, array in zip(node.output, arrays, strict=True):
            constants[name] = numpy_helper.from_array(array, name)
            results.append(constants[name])
    folded = {tensor.name for tensor in results}
    _keep(graph.node, lambda node: folded.isdisjoint(node.output))
    graph.initializer.extend(results)
    remove_unused(model)


def remove_unused(model: onnx.ModelProto) -> None:
    """Takes out the nodes, initialisers and noted shapes that no output depends on."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
    _keep(graph.node, lambda node: not needed.isdisjoint(node.output))
    _keep(graph.initializer, lambda tensor: tensor.name in needed)
    produced = {name for node in graph.node for name in node.output}
    _keep(graph.value_info, lambda value: value.name in produced)


def _keep(field: Any, is_kept: Callable[[Any], bool]) -> None:
    """Takes the other items out of the field, one by one.

    Filling it anew would copy all weights, and protobuf frees the old ones with the model only.
    """
    for index in reversed(range(len(field))):
        if not is_kept(field[index]):
            del field[index]
