"""How many inputs an exported graph takes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmad_fast.errors import InvalidInputError
from mmad_fast.export.folding import remove_unused

if TYPE_CHECKING:
    import onnx

MAX_BATCH = 1024
BATCH_AXIS = "batch"
"""Name of the axis whose length a dynamic graph leaves open."""


@dataclass(frozen=True)
class Batch:
    """The batch sizes of an exported graph, as an optimisation profile names them.

    Attributes:
        min: Smallest size, 1 to 1024.
        opt: The size to tune for, min to max.
        max: Largest size, at most 1024. Where it is min, the graph is static.

    Raises:
        InvalidInputError: the sizes are not whole numbers in this order.
    """

    min: int = 1
    opt: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        sizes = (self.min, self.opt, self.max)
        if any(isinstance(size, bool) or not isinstance(size, int) for size in sizes) or not (
            1 <= self.min <= self.opt <= self.max <= MAX_BATCH
        ):
            raise InvalidInputError(
                f"batch sizes (min, opt, max) are {sizes}; whole numbers with "
                f"1 <= min <= opt <= max <= {MAX_BATCH} are needed"
            )

    @property
    def is_dynamic(self) -> bool:
        """Whether the graph takes more than one size."""
        return self.min < self.max

    @staticmethod
    def parse(text: str) -> Batch:
        """The batch that a command line names: "4" (static) or "1,4,8" (min, opt, max).

        Raises:
            InvalidInputError: anything else.
        """
        try:
            sizes = [int(part) for part in text.split(",")]
        except ValueError:
            sizes = []
        if len(sizes) not in (1, 3):
            raise InvalidInputError(
                f"batch is {text!r}; one size (4) or three (1,4,8: smallest, usual, largest) "
                "are needed"
            )
        return Batch(*(sizes * 3 if len(sizes) == 1 else sizes))


SINGLE = Batch()
"""One input at a time: what a detector runs."""


def set_batch(model: onnx.ModelProto, batch: Batch) -> None:
    """Makes a graph of batch 1 one of another batch, or one that takes every size.

    Shapes that the graph was exported with are widened: the target shapes of Reshape nodes get
    the size (or -1), and the class token, a constant in front of the patch tokens, becomes part
    of the position embedding (see `_add_class_token`). For a batch of 1 nothing changes.

    Args:
        model: Of batch 1, constants folded; changed in place.
        batch: The sizes. min, opt and max of a dynamic one are not in the graph: they belong to
            the engine.

    Raises:
        InvalidInputError: an input is not of batch 1, or the graph is not one that `export_graph`
            writes.
    """
    from onnx import numpy_helper

    graph = model.graph
    for value in graph.input:
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_value != 1:
            raise InvalidInputError(
                f"input {value.name!r} of the graph has batch "
                f"{first.dim_param or first.dim_value}; a graph of batch 1 is needed"
            )
    if batch.max == 1:
        return
    _add_class_token(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape":
            continue
        if node.input[1] not in constants:
            raise _unknown_graph(f"the shape {node.input[1]!r} is not constant")
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape[0] != 1:
            raise _unknown_graph(f"{node.output[0]!r} has shape {shape.tolist()}, not batch 1")
        shape[0] = -1 if batch.is_dynamic else batch.max
        name = f"{node.name or node.output[0]}_shape"
        graph.initializer.append(numpy_helper.from_array(shape, name))
        node.input[1] = name
    for value in (*graph.input, *graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        if batch.is_dynamic:
            axis.dim_param = BATCH_AXIS
        else:
            axis.dim_value = batch.max
    del graph.value_info[:]
    remove_unused(model)


def _add_class_token(graph: onnx.GraphProto) -> None:
    """Concat(class token, Add(patch tokens, positions)) as Add(Pad(patch tokens), both).

    The concatenation holds a class token for every image of a batch, so its constant is of the
    batch's size. The sum holds one (1, 1 + T, C) constant: the same numbers, since 0 + x is x.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Concat" or node.input[0] not in constants:
            nodes.append(node)
            continue
        summed = producers.get(node.input[1])
        if len(node.input) != 2 or summed is None or summed.input[-1] not in constants:
            raise _unknown_graph(f"{node.output[0]!r} joins more than class token and patch tokens")
        first = numpy_helper.to_array(constants[node.input[0]])
        patches, positions = summed.input
        both = np.concatenate([first, numpy_helper.to_array(constants[positions])], axis=1)
        output = node.output[0]
        padding = np.array([0, first.shape[1], 0, 0, 0, 0], np.int64)
        padded, pads, tokens = (f"{output}_{part}" for part in ("padded", "padding", "positions"))
        nodes.append(helper.make_node("Pad", [patches, pads], [padded], name=padded))
        nodes.append(helper.make_node("Add", [padded, tokens], [output], name=node.name))
        graph.initializer.append(numpy_helper.from_array(padding, pads))
        graph.initializer.append(numpy_helper.from_array(both, tokens))
    del graph.node[:]
    graph.node.extend(nodes)


def _unknown_graph(what: str) -> InvalidInputError:
    return InvalidInputError(
        f"the graph is not one that mmad-fast exports: {what}. Export it with a batch of 1, or its "
        "backbone with mmad_fast.export.onnx_graph"
    )
