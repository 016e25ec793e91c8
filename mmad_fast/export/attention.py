"""Attention in the patterns that engines have a fused kernel for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mmad_fast.errors import InvalidInputError
from mmad_fast.export.folding import remove_unused
from mmad_fast.export.opset import require_opset

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

ATTENTION_OPSET = 23
"""The first with the operator Attention."""


def fuse_attention(model: onnx.ModelProto) -> int:
    """The number of attention blocks, each of which is one Attention node from now on.

    `export_graph` writes a block's attention head by head: the product with the qkv matrix
    (B, T, 3C) is reshaped, transposed and sliced, a few heads at a time go through MatMul, Softmax
    and MatMul, and the results are concatenated. Here it is reshaped to (B, T, 3H, D), transposed
    and split once, and goes through one Attention. The graph becomes one of opset 23.

    Args:
        model: As `export_graph` writes it; changed in place.

    Raises:
        InvalidInputError: a Softmax over products of heads is not part of such a block.
    """
    num_blocks = _rewrite(model, _attention)
    require_opset(model, ATTENTION_OPSET)
    return num_blocks


def merge_heads(model: onnx.ModelProto) -> int:
    """The number of attention blocks, each of which is two products around one Softmax from now on.

    As `fuse_attention`, but with MatMul, Softmax and MatMul over all heads in place of the
    operator, so the opset stays and a TensorRT that does not know the operator reads it. TensorRT
    makes the same fused kernel of both, and needs one kernel less around it for this one. On a
    CPU the attention weights of all heads take memory.

    Args:
        model: As `export_graph` writes it; changed in place.

    Raises:
        InvalidInputError: a Softmax over products of heads is not part of such a block.
    """
    return _rewrite(model, _products)


def _rewrite(
    model: onnx.ModelProto, attend: Callable[[_Block, Sequence[str]], list[onnx.NodeProto]]
) -> int:
    """The number of blocks whose attention was rewritten."""
    from onnx import numpy_helper

    graph = model.graph
    links = _Links(graph)
    softmaxes = [
        node for node in graph.node if node.op_type == "Softmax" and _reads_heads(links, node)
    ]
    blocks = {block.output: block for block in (_find_block(links, node) for node in softmaxes)}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        block = blocks.get(node.output[0])
        nodes.extend([node] if block is None else _split_heads(block, attend))
    del graph.node[:]
    graph.node.extend(nodes)
    for block in blocks.values():
        for name, values in block.constants().items():
            graph.initializer.append(numpy_helper.from_array(values, name))
    remove_unused(model)
    return len(blocks)


@dataclass(frozen=True)
class _Block:
    """One block's attention: output (B, H, T, D) = attention of qkv (B, T, 3C).

    Attributes:
        qkv: Name of the tensor.
        output: Name of the tensor.
        shape: Of qkv as (B, T, 3, H, D).
        scale: Factor of the products of queries and keys.
    """

    qkv: str
    output: str
    shape: tuple[int, ...]
    scale: float

    def constants(self) -> dict[str, NDArray]:
        """The values by name that its nodes may read."""
        batch, num_tokens, parts, num_heads, head_size = self.shape
        heads = np.array([batch, num_tokens, parts * num_heads, head_size], np.int64)
        scale = np.array(self.scale, np.float32)
        return {f"{self.output}_shape": heads, f"{self.output}_scale": scale}


def _split_heads(
    block: _Block, attend: Callable[[_Block, Sequence[str]], list[onnx.NodeProto]]
) -> list[onnx.NodeProto]:
    """The nodes of the block, from qkv to its output."""
    from onnx import helper

    name = block.output
    heads, ordered = f"{name}_heads", f"{name}_ordered"
    parts = [f"{name}_{part}" for part in ("query", "key", "value")]
    return [
        helper.make_node("Reshape", [block.qkv, f"{name}_shape"], [heads], name=heads),
        helper.make_node("Transpose", [heads], [ordered], name=ordered, perm=[0, 2, 1, 3]),
        helper.make_node("Split", [ordered], parts, name=f"{name}_qkv", axis=1, num_outputs=3),
        *attend(block, parts),
    ]


def _attention(block: _Block, parts: Sequence[str]) -> list[onnx.NodeProto]:
    from onnx import helper

    return [
        helper.make_node("Attention", parts, [block.output], name=block.output, scale=block.scale)
    ]


def _products(block: _Block, parts: Sequence[str]) -> list[onnx.NodeProto]:
    from onnx import helper

    name, (query, key, value) = block.output, parts
    scaled, turned, scores, weights = (
        f"{name}_{part}" for part in ("scaled", "turned", "scores", "weights")
    )
    return [
        helper.make_node("Mul", [query, f"{name}_scale"], [scaled], name=scaled),
        helper.make_node("Transpose", [key], [turned], name=turned, perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", [scaled, turned], [scores], name=scores),
        helper.make_node("Softmax", [scores], [weights], name=weights, axis=-1),
        helper.make_node("MatMul", [weights, value], [name], name=name),
    ]


class _Links:
    """Who produces and who reads each tensor of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}

    def is_made_by(self, name: str, op_type: str) -> bool:
        """Whether a node of that kind produces the tensor."""
        return name in self.producers and self.producers[name].op_type == op_type

    def above(self, name: str, op_type: str) -> onnx.NodeProto:
        """The node of that kind that produces the tensor."""
        return _require(self.producers.get(name), op_type, f"before {name!r}")

    def below(self, node: onnx.NodeProto, op_type: str) -> onnx.NodeProto:
        """The node of that kind that alone reads the node's result."""
        readers = self.readers.get(node.output[0], [])
        reader = readers[0] if len(readers) == 1 else None
        return _require(reader, op_type, f"after {node.output[0]!r}")

    def constant(self, name: str) -> NDArray:
        """The initialiser of that name."""
        from onnx import numpy_helper

        if name not in self.constants:
            raise _unknown_attention(f"{name!r} is not constant")
        return numpy_helper.to_array(self.constants[name])


def _reads_heads(links: _Links, softmax: onnx.NodeProto) -> bool:
    """Whether it is of products with a part of a qkv tensor: others stay as they are."""
    name = softmax.input[0]
    while any(links.is_made_by(name, kind) for kind in ("MatMul", "Mul", "Slice")):
        name = links.producers[name].input[0]
    return links.is_made_by(name, "Squeeze")


def _find_block(links: _Links, softmax: onnx.NodeProto) -> _Block:
    """The block that the Softmax belongs to."""
    joined = links.below(softmax, "MatMul")
    parts = [joined.output[0]]
    readers = links.readers.get(joined.output[0], [])
    if readers and readers[0].op_type == "Concat":
        joined = links.below(joined, "Concat")
        parts = list(joined.input)
    output = joined.output[0]
    windows = [_find_window(links, part) for part in parts]
    queries, scale = windows[0]
    reached = 0
    for window in windows:
        if window != (replace(queries, first=reached, end=window[0].end), scale):
            raise _unknown_attention(f"the heads of {output!r} are not in order")
        reached = window[0].end
    if reached != queries.shape[3]:
        raise _unknown_attention(f"{output!r} has {reached} of {queries.shape[3]} heads")
    return _Block(queries.qkv, output, queries.shape, scale)


@dataclass(frozen=True)
class _Heads:
    """A part of a qkv tensor: of its queries (0), keys (1) or values (2) the heads first to end."""

    qkv: str
    shape: tuple[int, ...]
    role: int
    first: int
    end: int


def _find_window(links: _Links, attended: str) -> tuple[_Heads, float]:
    """The queries and the scale of softmax(scale * queries @ keys) @ values of that name."""
    product = links.above(attended, "MatMul")
    scores = links.above(links.above(product.input[0], "Softmax").input[0], "MatMul")
    queries = links.above(scores.input[0], "Mul")
    keys = links.above(scores.input[1], "Transpose")
    found = [
        _find_heads(links, name) for name in (queries.input[0], keys.input[0], product.input[1])
    ]
    if found != [replace(found[0], role=role) for role in range(3)]:
        raise _unknown_attention(f"{attended!r} is not made of the same heads of one qkv tensor")
    return found[0], float(links.constant(queries.input[1]))


def _find_heads(links: _Links, name: str) -> _Heads:
    """What part of which qkv tensor the tensor (B, heads, T, D) is."""
    window = None
    if links.is_made_by(name, "Slice"):
        node = links.above(name, "Slice")
        window = [int(links.constant(bound)[0]) for bound in node.input[1:3]]
        name = node.input[0]
    part = links.above(links.above(name, "Squeeze").input[0], "Slice")
    reshape = links.above(links.above(part.input[0], "Transpose").input[0], "Reshape")
    shape = tuple(int(size) for size in links.constant(reshape.input[1]))
    if len(shape) != 5 or shape[2] != 3:
        raise _unknown_attention(f"{reshape.output[0]!r} has shape {shape}, not (B, T, 3, H, D)")
    role = int(links.constant(part.input[1])[0])
    first, end = window or (0, shape[3])
    return _Heads(reshape.input[0], shape, role, first, end)


def _require(node: onnx.NodeProto | None, op_type: str, where: str) -> onnx.NodeProto:
    if node is None or node.op_type != op_type:
        found = "nothing" if node is None else node.op_type
        raise _unknown_attention(f"{where} stands {found}, not {op_type}")
    return node


def _unknown_attention(what: str) -> InvalidInputError:
    return InvalidInputError(
        f"the graph's attention is not the one that mmad-fast exports: {what}. Fit the detector "
        "again with this version, or export its backbones with mmad_fast.export.onnx_graph"
    )
