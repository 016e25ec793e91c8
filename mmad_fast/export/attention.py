"""Attention as one node, the pattern that engines have a fused kernel for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmad_fast.errors import InvalidInputError
from mmad_fast.export.folding import remove_unused

if TYPE_CHECKING:
    import numpy as np
    import onnx

OPSET = 23
"""The first with the operator Attention."""

IR_VERSION = 11
"""What came with opset 23."""


def fuse_attention(model: onnx.ModelProto) -> int:
    """The number of attention blocks, each of which is one Attention node from now on.

    `export_graph` writes a block's attention head by head: the product with the qkv matrix
    (B, T, 3C) is reshaped, transposed and sliced, a few heads at a time go through MatMul, Softmax
    and MatMul, and the results are concatenated, transposed and reshaped to (B, T, C). Here it
    becomes a Split of (B, T, 3C) and an Attention of three (B, T, C). The graph becomes one of
    opset 23: no operator that it holds has changed its meaning since 18.

    Args:
        model: As `export_graph` writes it; changed in place.

    Raises:
        InvalidInputError: a Softmax is not part of such a block.
    """
    from onnx import helper

    graph = model.graph
    links = _Links(graph)
    blocks = {
        block.output: block
        for block in (_find_block(links, node) for node in graph.node if node.op_type == "Softmax")
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        block = blocks.get(node.output[0])
        nodes.extend([node] if block is None else block.nodes())
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = max(model.ir_version, IR_VERSION)
    return len(blocks)


@dataclass(frozen=True)
class _Block:
    """One block's attention: output = attention of qkv, the thirds of a (B, T, 3C) tensor."""

    qkv: str
    output: str
    num_heads: int
    scale: float

    def nodes(self) -> list[onnx.NodeProto]:
        from onnx import helper

        parts = [f"{self.output}_{part}" for part in ("query", "key", "value")]
        return [
            helper.make_node(
                "Split", [self.qkv], parts, name=f"{self.output}_split", axis=-1, num_outputs=3
            ),
            helper.make_node(
                "Attention",
                parts,
                [self.output],
                name=f"{self.output}_attention",
                q_num_heads=self.num_heads,
                kv_num_heads=self.num_heads,
                scale=self.scale,
            ),
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

    def above(self, name: str, op_type: str) -> onnx.NodeProto:
        """The node of that kind that produces the tensor."""
        return _require(self.producers.get(name), op_type, f"before {name!r}")

    def below(self, node: onnx.NodeProto, op_type: str) -> onnx.NodeProto:
        """The node of that kind that alone reads the node's result."""
        readers = self.readers.get(node.output[0], [])
        reader = readers[0] if len(readers) == 1 else None
        return _require(reader, op_type, f"after {node.output[0]!r}")

    def constant(self, name: str) -> np.ndarray:
        """The initialiser of that name."""
        from onnx import numpy_helper

        if name not in self.constants:
            raise _unknown_attention(f"{name!r} is not constant")
        return numpy_helper.to_array(self.constants[name])


def _find_block(links: _Links, softmax: onnx.NodeProto) -> _Block:
    """The block that the Softmax belongs to."""
    joined = links.below(softmax, "MatMul")
    parts = [joined.output[0]]
    readers = links.readers.get(joined.output[0], [])
    if readers and readers[0].op_type == "Concat":
        joined = links.below(joined, "Concat")
        parts = list(joined.input)
    output = links.below(links.below(joined, "Transpose"), "Reshape").output[0]
    windows = [_find_window(links, part) for part in parts]
    first = windows[0]
    reached = 0
    for window in windows:
        if (window.qkv, window.scale, window.first) != (first.qkv, first.scale, reached):
            raise _unknown_attention(f"the heads of {output!r} are not in order")
        reached = window.end
    if reached != first.num_heads:
        raise _unknown_attention(f"{output!r} has {reached} of {first.num_heads} heads")
    return _Block(first.qkv, output, first.num_heads, first.scale)


@dataclass(frozen=True)
class _Heads:
    """A part of a qkv tensor: of its queries (0), keys (1) or values (2) the heads first to end."""

    qkv: str
    role: int
    num_heads: int
    first: int
    end: int


@dataclass(frozen=True)
class _Window:
    """The heads first to end of one attention."""

    qkv: str
    num_heads: int
    first: int
    end: int
    scale: float


def _find_window(links: _Links, attended: str) -> _Window:
    """What softmax(scale * queries @ keys) @ values of that name is computed from."""
    product = links.above(attended, "MatMul")
    scores = links.above(links.above(product.input[0], "Softmax").input[0], "MatMul")
    queries = links.above(scores.input[0], "Mul")
    keys = links.above(scores.input[1], "Transpose")
    found = [
        _find_heads(links, name) for name in (queries.input[0], keys.input[0], product.input[1])
    ]
    first = found[0]
    if found != [replace(first, role=role) for role in range(3)]:
        raise _unknown_attention(f"{attended!r} is not made of the same heads of one qkv tensor")
    scale = float(links.constant(queries.input[1]))
    return _Window(first.qkv, first.num_heads, first.first, first.end, scale)


def _find_heads(links: _Links, name: str) -> _Heads:
    """What part of which qkv tensor the tensor (B, heads, T, D) is."""
    window = None
    if links.producers[name].op_type == "Slice":
        node = links.above(name, "Slice")
        window = [int(links.constant(bound)[0]) for bound in node.input[1:3]]
        name = node.input[0]
    part = links.above(links.above(name, "Squeeze").input[0], "Slice")
    reshape = links.above(links.above(part.input[0], "Transpose").input[0], "Reshape")
    num_heads = int(links.constant(reshape.input[1])[3])  # of (B, T, 3, heads, D)
    role = int(links.constant(part.input[1])[0])
    first, end = window or (0, num_heads)
    return _Heads(reshape.input[0], role, num_heads, first, end)


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
