"""What a graph of an artifact may hold, and how large it may become: looked at before an engine
opens it, since engines compute and allocate while they open.

All shapes follow from the inputs' and the constants', operator by operator (operators.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmad_fast.engines.onnx_file import (
    MAX_AXES,
    OnnxGraph,
    OnnxNode,
    OnnxTensor,
    UnfitGraphError,
    read_onnx_graph,
    unfit_graph,
)
from mmad_fast.engines.operators import ATTRIBUTE_TYPES, RULES, Call, Shape
from mmad_fast.manifest import MAX_AXIS

MAX_NODES = 5000
MAX_LIVE_NUMBERS = 2**28
"""In the arrays that are held at one time while one scan is computed: 1 GiB of float32. The
largest of ours, 12 blocks of DINO ViT-B/8, holds 7 % of it."""
MAX_CONSTANT_NUMBERS = 2**24
CONSTANTS_PER_STORED = 4
"""In the arrays that depend on constants alone, which engines compute when they open a graph: so
many, and so many per number that the file stores (weights of int8 and fp8 are scaled back)."""
MAX_MULTIPLY_ADDS = 2**40
"""Of one scan; the largest of ours needs 7 % of it."""
OPSETS = range(13, 27)


class GraphSize(NamedTuple):
    """How large the arrays of a graph are.

    Attributes:
        live_numbers: In the arrays that are held at one time.
        constant_numbers: In those that depend on constants alone.
        multiply_adds: Of one run.
    """

    live_numbers: int
    constant_numbers: int
    multiply_adds: int


def check_onnx_graph(path: Path, *, named: Path | None = None) -> GraphSize:
    """How large the graph in a file becomes, which is checked; a free batch counts as one scan.
    Messages call the file by `named`.

    Raises:
        ArtifactError: it has an operator, attribute or type that ours do not have, a shape that
            cannot be told beforehand, other outputs than it says, or is too large.
    """
    graph = read_onnx_graph(path, named=named)
    try:
        return _size(graph)
    except UnfitGraphError as error:
        raise unfit_graph(named or path, error) from error


def _size(graph: OnnxGraph) -> GraphSize:
    if not 0 < len(graph.nodes) <= MAX_NODES or graph.opset not in OPSETS:
        raise UnfitGraphError(
            f"it has {len(graph.nodes)} operators of version {graph.opset}; 1 to {MAX_NODES} of "
            f"versions {OPSETS[0]} to {OPSETS[-1]} are run"
        )
    shapes: dict[str, Shape] = {name: tensor.shape for name, tensor in graph.tensors.items()}
    is_constant = set(shapes)
    inputs = {name: _one_scan(name, axes) for name, axes in graph.inputs.items()}
    stored = sum(map(math.prod, shapes.values()))
    max_constant = MAX_CONSTANT_NUMBERS + CONSTANTS_PER_STORED * stored
    limits = GraphSize(MAX_LIVE_NUMBERS, max_constant, MAX_MULTIPLY_ADDS)
    _add(shapes, inputs)
    last_reader = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
    last_reader |= dict.fromkeys(graph.outputs, len(graph.nodes))
    held = {name: math.prod(shape) for name, shape in inputs.items()}
    live, largest, constant_numbers, multiply_adds = sum(held.values()), 0, 0, 0
    for at, node in enumerate(graph.nodes):
        call = _call(node, shapes, graph.tensors)
        outputs, work, scratch = _run(call)
        numbers = {name: math.prod(shape) for name, shape in outputs.items()}
        _add(shapes, outputs)
        if is_constant.issuperset(name for name in node.inputs if name):
            is_constant |= set(outputs)
            constant_numbers += sum(numbers.values())
        held |= numbers
        live += sum(numbers.values())
        largest, multiply_adds = max(largest, live + scratch), multiply_adds + work
        _check_limits(GraphSize(largest, constant_numbers, multiply_adds), limits, node)
        for name in {*node.inputs, *outputs}:
            if last_reader.get(name, -1) <= at:
                live -= held.pop(name, 0)
    _check_outputs(graph, shapes)
    return GraphSize(largest, constant_numbers, multiply_adds)


def _one_scan(name: str, axes: Sequence[int | None]) -> Shape:
    """The shape with a free first axis as 1."""
    shape = tuple(1 if axis is None and at == 0 else axis for at, axis in enumerate(axes))
    if not all(isinstance(axis, int) and axis > 0 for axis in shape):
        shown = tuple("free" if axis is None else axis for axis in axes)
        raise UnfitGraphError(
            f"{name!r} has the dynamic shape {shown}; only the batch of a detector's graph may be "
            "free"
        )
    return tuple(int(axis or 0) for axis in shape)


def _add(shapes: dict[str, Shape], new: Mapping[str, Shape]) -> None:
    for name, shape in new.items():
        if name in shapes or len(shape) > MAX_AXES:
            problem = "is another array's name" if name in shapes else f"has {len(shape)} axes"
            raise UnfitGraphError(f"{name!r} {problem}")
        for axis in shape:
            if not 0 <= axis <= MAX_AXIS:
                raise UnfitGraphError(f"{name!r} has an axis of {axis}")
        shapes[name] = shape


def _call(node: OnnxNode, shapes: Mapping[str, Shape], tensors: Mapping[str, OnnxTensor]) -> Call:
    for name in node.inputs:
        if name and name not in shapes:
            raise UnfitGraphError(f"{node.op_type} reads {name!r}, which nothing before it makes")
    constants = [tensors[name].values if name in tensors else None for name in node.inputs]
    return Call(node, [shapes.get(name) for name in node.inputs], constants)


def _run(call: Call) -> tuple[dict[str, Shape], int, int]:
    """(shapes of the outputs by name, multiply-adds, numbers held meanwhile) of an operator."""
    node = call.node
    rule = RULES.get(node.op_type)
    if rule is None:
        raise UnfitGraphError(f"it has the operator {node.op_type!r}, which none of ours has")
    unknown = [name for name in node.attributes if name not in rule.attributes]
    if unknown:
        raise UnfitGraphError(f"{node.op_type} has {', '.join(unknown)}, which none of ours has")
    for name, value in node.attributes.items():
        if type(value) is not ATTRIBUTE_TYPES.get(name, int):
            raise UnfitGraphError(f"{node.op_type} has the {name} {value!r}, of another type")
    outputs = rule.shapes(call)
    if len(node.outputs) != len(outputs) or not all(node.outputs):
        raise UnfitGraphError(f"{node.op_type} has {len(node.outputs)} outputs, not {len(outputs)}")
    found: dict[str, Shape] = {}
    for name, shape in zip(node.outputs, outputs, strict=True):
        _add(found, {name: shape})
    length = sum(map(math.prod, outputs))
    work = length if rule.multiply_adds is None else rule.multiply_adds(call, length)
    return found, work, 0 if rule.scratch is None else rule.scratch(call, length)


def _check_limits(size: GraphSize, limits: GraphSize, node: OnnxNode) -> None:
    for name, found, limit in zip(GraphSize._fields, size, limits, strict=True):
        if found > limit:
            raise UnfitGraphError(
                f"it needs {found} {name.replace('_', ' ')} up to {node.op_type}; at most {limit} "
                "are run"
            )


def _check_outputs(graph: OnnxGraph, shapes: Mapping[str, Shape]) -> None:
    for name, axes in graph.outputs.items():
        found = shapes.get(name)
        if name in graph.tensors or name in graph.inputs or found != _one_scan(name, axes):
            raise UnfitGraphError(f"its output {name!r} is {found}, not {tuple(axes)} as it says")
