"""The operators of our graphs, each with the shapes of its outputs; a graph with another one is
refused. Who exports a new one adds its line to RULES.

Where an operator can do more than ours do (other paddings, computed shapes), that is refused, too:
a rule must give what an engine will allocate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mmad_fast.engines.onnx_file import OnnxNode, UnfitGraphError

FLOAT_TYPES = (1, 10, 16)
"""What a Cast may make: float32, float16, bfloat16."""

PAD_MODES = ("constant", "edge")

Shape = tuple[int, ...]
Constant = tuple[int, ...] | None


class Call(NamedTuple):
    """An operator with what is known of its inputs; a missing one has None as shape."""

    node: OnnxNode
    shapes: Sequence[Shape | None]
    constants: Sequence[Constant]

    def shape(self, index: int) -> Shape:
        found = self.shapes[index] if index < len(self.shapes) else None
        if found is None:
            raise UnfitGraphError(f"{self.node.op_type} lacks its input {index}")
        return found

    def integers(self, index: int) -> tuple[int, ...]:
        """A constant that decides on a shape; () where it is left out."""
        if index >= len(self.shapes) or self.shapes[index] is None:
            return ()
        found = self.constants[index]
        if found is None:
            raise UnfitGraphError(
                f"input {index} of {self.node.op_type} is no constant of integers"
            )
        return found


class Rule(NamedTuple):
    """How an operator's outputs follow from its inputs.

    Attributes:
        shapes: Of the outputs.
        attributes: Those that may be set; others would change the rule.
        multiply_adds: Given the call and the numbers of its outputs; None: one per number.
        scratch: Numbers that an engine may hold meanwhile beside inputs and outputs, likewise.
    """

    shapes: Callable[[Call], list[Shape]]
    attributes: tuple[str, ...] = ()
    multiply_adds: Callable[[Call, int], int] | None = None
    scratch: Callable[[Call, int], int] | None = None


def _same(call: Call) -> list[Shape]:
    return [call.shape(0)]


def _broadcast(call: Call) -> list[Shape]:
    result: Shape = ()
    for at in range(len(call.shapes)):
        result = _broadcast_two(result, call.shape(at))
    return [result]


def _broadcast_two(first: Shape, second: Shape) -> Shape:
    rank = max(len(first), len(second))
    pairs = zip(
        (1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second, strict=True
    )
    axes = []
    for a, b in pairs:
        if a != b and 1 not in (a, b):
            raise UnfitGraphError(f"shapes {first} and {second} do not go together")
        axes.append(b if a == 1 else a)
    return tuple(axes)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise UnfitGraphError(f"there is no axis {axis} among {rank}")
    return axis % rank


def _matmul(call: Call) -> list[Shape]:
    first, second = call.shape(0), call.shape(1)
    is_vector = len(second) == 1
    rows, columns = first[-2:-1], () if is_vector else second[-1:]
    if not first or not second or first[-1] != second[-1 if is_vector else -2]:
        raise UnfitGraphError(f"shapes {first} and {second} have no product")
    return [(*_broadcast_two(first[:-2], second[:-2]), *rows, *columns)]


def _gemm(call: Call) -> list[Shape]:
    first, second = call.shape(0), call.shape(1)
    if len(first) != 2 or len(second) != 2:
        raise UnfitGraphError(f"Gemm takes matrices, not {first} and {second}")
    rows, inner = first[::-1] if call.node.attributes.get("transA") else first
    other, columns = second[::-1] if call.node.attributes.get("transB") else second
    if inner != other:
        raise UnfitGraphError(f"shapes {first} and {second} have no product")
    return [(rows, columns)]


def _inner_product(call: Call, length: int) -> int:
    return length * call.shape(0)[-2 if call.node.attributes.get("transA") else -1]


def _transpose(call: Call) -> list[Shape]:
    shape = call.shape(0)
    order = call.node.attributes.get("perm", tuple(reversed(range(len(shape)))))
    if sorted(order) != list(range(len(shape))):
        raise UnfitGraphError(f"{order} is no order of the axes of {shape}")
    return [tuple(shape[axis] for axis in order)]


def _reshape(call: Call) -> list[Shape]:
    shape, wanted = call.shape(0), call.integers(1)
    keeps_zero = call.node.attributes.get("allowzero", 0)
    axes = [
        shape[at] if axis == 0 and not keeps_zero and at < len(shape) else axis
        for at, axis in enumerate(wanted)
    ]
    length, known = math.prod(shape), math.prod(axis for axis in axes if axis != -1)
    if axes.count(-1) == 1 and known > 0:
        axes[axes.index(-1)] = length // known
    if not wanted or min(axes) < 0 or math.prod(axes) != length:
        raise UnfitGraphError(f"shape {shape} cannot become {wanted}")
    return [tuple(axes)]


def _flatten(call: Call) -> list[Shape]:
    shape = call.shape(0)
    axis = call.node.attributes.get("axis", 1)
    axis = axis if axis == len(shape) else _axis(axis, len(shape))
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def _squeeze(call: Call) -> list[Shape]:
    shape = call.shape(0)
    axes = {_axis(axis, len(shape)) for axis in call.integers(1)}
    if not axes or any(shape[axis] != 1 for axis in axes):
        raise UnfitGraphError(f"the axes {sorted(axes)} of {shape} cannot be left out")
    return [tuple(length for at, length in enumerate(shape) if at not in axes)]


def _unsqueeze(call: Call) -> list[Shape]:
    shape, new = call.shape(0), call.integers(1)
    rank = len(shape) + len(new)
    axes = {_axis(axis, rank) for axis in new}
    if not axes or len(axes) != len(new):
        raise UnfitGraphError(f"{new} are no new axes of {shape}")
    rest = iter(shape)
    return [tuple(1 if at in axes else next(rest) for at in range(rank))]


def _reduce(call: Call) -> list[Shape]:
    shape, attributes = call.shape(0), call.node.attributes
    chosen = attributes.get("axes", ()) or call.integers(1)
    if not chosen and not attributes.get("noop_with_empty_axes", 0):
        chosen = tuple(range(len(shape)))
    axes = {_axis(axis, len(shape)) for axis in chosen}
    if attributes.get("keepdims", 1):
        return [tuple(1 if at in axes else length for at, length in enumerate(shape))]
    return [tuple(length for at, length in enumerate(shape) if at not in axes)]


def _expand(call: Call) -> list[Shape]:
    return [_broadcast_two(call.shape(0), call.integers(1))]


def _concat(call: Call) -> list[Shape]:
    shapes = [call.shape(at) for at in range(len(call.shapes))]
    first = shapes[0] if shapes else ()
    axis = _axis(call.node.attributes.get("axis", 0), len(first))
    rests = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
    if len(rests) != 1 or any(len(shape) != len(first) for shape in shapes):
        raise UnfitGraphError(f"shapes {shapes} cannot be joined")
    return [(*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])]


def _split(call: Call) -> list[Shape]:
    shape, attributes = call.shape(0), call.node.attributes
    axis = _axis(attributes.get("axis", 0), len(shape))
    sizes = call.integers(1)
    if not sizes:
        count = len(call.node.outputs)
        if attributes.get("num_outputs", count) != count:
            raise UnfitGraphError(f"Split makes {attributes['num_outputs']} outputs of {count}")
        size = -(-shape[axis] // max(1, count))
        sizes = tuple(min(size, shape[axis] - at * size) for at in range(count))
    if min(sizes, default=-1) < 0 or sum(sizes) != shape[axis]:
        raise UnfitGraphError(f"shape {shape} cannot be split into {sizes}")
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _slice(call: Call) -> list[Shape]:
    shape = list(call.shape(0))
    starts, ends = call.integers(1), call.integers(2)
    axes = call.integers(3) or tuple(range(len(starts)))
    steps = call.integers(4) or (1,) * len(starts)
    if len({len(starts), len(ends), len(axes), len(steps)}) != 1 or min(steps, default=0) < 1:
        raise UnfitGraphError(f"Slice has starts {starts}, ends {ends}, steps {steps}")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = _axis(axis, len(shape))
        shape[at] = len(range(shape[at])[start:end:step])
    return [tuple(shape)]


def _gather(call: Call) -> list[Shape]:
    shape, indices = call.shape(0), call.integers(1)
    axis = _axis(call.node.attributes.get("axis", 0), len(shape))
    if call.shape(1) != (len(indices),) or not all(
        -shape[axis] <= index < shape[axis] for index in indices
    ):
        raise UnfitGraphError(f"Gather takes what {shape} does not have along axis {axis}")
    return [(*shape[:axis], len(indices), *shape[axis + 1 :])]


def _pad(call: Call) -> list[Shape]:
    shape, pads = call.shape(0), call.integers(1)
    if call.node.attributes.get("mode", "constant") not in PAD_MODES or call.shapes[3:]:
        raise UnfitGraphError(f"Pad is not of all axes, or in none of {', '.join(PAD_MODES)}")
    if len(pads) != 2 * len(shape) or min(pads, default=-1) < 0:
        raise UnfitGraphError(f"shape {shape} cannot be padded by {pads}")
    rank = len(shape)
    return [tuple(pads[at] + shape[at] + pads[at + rank] for at in range(rank))]


def _windows(call: Call, kernel: Sequence[int], channels: int) -> list[Shape]:
    """What a kernel that moves over the last axes makes."""
    shape, attributes = call.shape(0), call.node.attributes
    rank = len(shape) - 2
    strides = attributes.get("strides", (1,) * rank)
    dilations = attributes.get("dilations", (1,) * rank)
    pads = attributes.get("pads", (0,) * 2 * rank)
    lengths = (len(kernel), len(strides), len(dilations), len(pads) // 2, rank)
    if rank < 1 or len(set(lengths)) != 1 or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise UnfitGraphError(f"{call.node.op_type} does not fit {shape}")
    if min((*kernel, *strides, *dilations)) < 1 or min(pads) < 0:
        raise UnfitGraphError(f"{call.node.op_type} has lengths below 1, or negative pads")
    axes = []
    for at in range(rank):
        span = dilations[at] * (kernel[at] - 1) + 1
        axes.append((shape[at + 2] + pads[at] + pads[at + rank] - span) // strides[at] + 1)
    if min(axes) < 1:
        raise UnfitGraphError(f"{call.node.op_type} has a kernel larger than {shape}")
    return [(shape[0], channels, *axes)]


def _conv(call: Call) -> list[Shape]:
    shape, weight, attributes = call.shape(0), call.shape(1), call.node.attributes
    groups, kernel = attributes.get("group", 1), weight[2:]
    fits = len(weight) == len(shape) >= 3 and min(groups, weight[0]) >= 1
    if (
        not fits
        or weight[1] * groups != shape[1]
        or weight[0] % groups
        or attributes.get("kernel_shape", kernel) != kernel
    ):
        raise UnfitGraphError(f"Conv of {shape} with a weight of {weight} in {groups} groups")
    return _windows(call, kernel, weight[0])


def _depth_to_space(call: Call) -> list[Shape]:
    shape, side = call.shape(0), call.node.attributes.get("blocksize", 0)
    if len(shape) != 4 or side < 1 or shape[1] % side**2:
        raise UnfitGraphError(f"DepthToSpace of {shape} in blocks of {side}")
    return [(shape[0], shape[1] // side**2, shape[2] * side, shape[3] * side)]


def _pool(call: Call) -> list[Shape]:
    shape = call.shape(0)
    if len(shape) < 3:
        raise UnfitGraphError(f"{call.node.op_type} does not fit {shape}")
    if call.node.attributes.get("ceil_mode", 0):
        raise UnfitGraphError(f"{call.node.op_type} has windows beyond the edge")
    return _windows(call, call.node.attributes.get("kernel_shape", ()), shape[1])


def _kernel_products(call: Call, length: int) -> int:
    if call.node.op_type == "Conv":
        return length * math.prod(call.shape(1)[1:])
    return length * math.prod(call.node.attributes["kernel_shape"])


def _attention(call: Call) -> list[Shape]:
    query, key, value = (call.shape(at) for at in range(3))
    if len(query) != 4 or key != query or value != query or len(call.shapes) != 3:
        raise UnfitGraphError(f"Attention of {query}, {key} and {value}")
    return [query]


def _attention_products(call: Call, length: int) -> int:
    return 2 * length * call.shape(0)[2]


def _attention_weights(call: Call, length: int) -> int:
    """Of all heads, before and after the softmax."""
    batch, heads, tokens, _ = call.shape(0)
    return 2 * batch * heads * tokens**2


def _unfolded_windows(call: Call, length: int) -> int:
    """The input once per place of the kernel."""
    return length // call.shape(1)[0] * math.prod(call.shape(1)[1:])


def _cast(call: Call) -> list[Shape]:
    if call.node.attributes.get("to") not in FLOAT_TYPES:
        raise UnfitGraphError(f"Cast makes numbers of type {call.node.attributes.get('to')}")
    return _same(call)


def _dynamic_quantize(call: Call) -> list[Shape]:
    return [call.shape(0), (), ()]


ATTRIBUTE_TYPES: dict[str, type] = (
    dict.fromkeys(("axes", "dilations", "kernel_shape", "pads", "perm", "strides"), tuple)
    | dict.fromkeys(("alpha", "beta", "epsilon", "scale"), float)
    | dict.fromkeys(("approximate", "auto_pad", "mode"), str)
)
"""Of those that are no integer."""
_AXIS = ("axis",)
_WINDOW = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")
_POOL = (*_WINDOW, "ceil_mode")
_REDUCE = ("axes", "keepdims", "noop_with_empty_axes")
_ELEMENTWISE = Rule(_broadcast)
RULES: dict[str, Rule] = {
    "Attention": Rule(_attention, ("scale",), _attention_products, _attention_weights),
    "AveragePool": Rule(_pool, (*_POOL, "count_include_pad"), _kernel_products),
    "Cast": Rule(_cast, ("to", "saturate")),
    "Concat": Rule(_concat, _AXIS),
    "Conv": Rule(_conv, (*_WINDOW, "group"), _kernel_products, _unfolded_windows),
    "DepthToSpace": Rule(_depth_to_space, ("blocksize", "mode")),
    "DequantizeLinear": Rule(_same, _AXIS),
    "DynamicQuantizeLinear": Rule(_dynamic_quantize),
    "Expand": Rule(_expand),
    "Flatten": Rule(_flatten, _AXIS),
    "Gather": Rule(_gather, _AXIS),
    "Gelu": Rule(_same, ("approximate",)),
    "Gemm": Rule(_gemm, ("alpha", "beta", "transA", "transB"), _inner_product),
    "LeakyRelu": Rule(_same, ("alpha",)),
    "LayerNormalization": Rule(_same, ("axis", "epsilon", "stash_type")),
    "MatMul": Rule(_matmul, (), _inner_product),
    "MatMulInteger": Rule(_matmul, (), _inner_product),
    "MaxPool": Rule(_pool, (*_POOL, "storage_order"), _kernel_products),
    "Pad": Rule(_pad, ("mode",)),
    "QuantizeLinear": Rule(_same, (*_AXIS, "saturate")),
    "ReduceL2": Rule(_reduce, _REDUCE),
    "ReduceMax": Rule(_reduce, _REDUCE),
    "ReduceMean": Rule(_reduce, _REDUCE),
    "ReduceSum": Rule(_reduce, _REDUCE),
    "Reshape": Rule(_reshape, ("allowzero",)),
    "Slice": Rule(_slice),
    "Softmax": Rule(_same, _AXIS),
    "Split": Rule(_split, (*_AXIS, "num_outputs")),
    "Squeeze": Rule(_squeeze),
    "Transpose": Rule(_transpose, ("perm",)),
    "Unsqueeze": Rule(_unsqueeze),
} | dict.fromkeys(
    (
        "Abs", "Add", "Atan", "Clip", "Div", "Erf", "Exp", "Identity", "Mul", "Neg", "Pow",
        "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh",
    ),
    _ELEMENTWISE,
)  # fmt: skip
