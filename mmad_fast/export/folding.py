"""Constant folding: what follows from the weights alone is computed once."""

from __future__ import annotations

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
    kept = []
    for node in graph.node:
        is_foldable = (
            node.op_type not in NEVER_FOLDED
            and all(not name or name in constants for name in node.input)
            and outputs.isdisjoint(node.output)
        )
        if not is_foldable:
            kept.append(node)
            continue
        feed = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
        results = ReferenceEvaluator(node, opsets={"": opset}).run(None, feed)
        for name, result in zip(node.output, results, strict=True):
            constants[name] = numpy_helper.from_array(result, name)
    _replace(graph.node, kept)
    _replace(graph.initializer, list(constants.values()))
    remove_unused(model)


def remove_unused(model: onnx.ModelProto) -> None:
    """Takes out the nodes, initialisers and noted shapes that no output depends on."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    used = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            used.append(node)
    _replace(graph.node, used[::-1])
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    produced = {name for node in graph.node for name in node.output}
    _replace(graph.value_info, [value for value in graph.value_info if value.name in produced])


def _replace(field: Any, items: list[Any]) -> None:
    """Makes the items the field's only ones."""
    del field[:]
    field.extend(items)
