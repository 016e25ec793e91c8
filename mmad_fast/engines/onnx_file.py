"""An ONNX file read without the package onnx and without trust: protobuf's wire format, of which
the messages and fields below are all that our graphs have.

Whatever else stands in a file is refused: nested graphs, functions, tensors that lie in other
files. Nothing recurses beyond the tables, and no weight is read: a tensor's data is a span.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmad_fast.errors import ArtifactError

MAX_TEXT_BYTES = 65536
MAX_PARTS = 65536
"""Of one kind in a message: nodes, tensors, axes."""
MAX_FIELDS = 2**19
"""That are read of a file, so that reading ends soon; 12 blocks of a transformer have 50,000."""
MAX_SMALL_VALUES = 2048
"""Integers of a tensor that are read: shapes, axes, pads."""
OWN_DOMAIN = ("", "ai.onnx")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_AXES = 8
FLOAT32, INT32, INT64 = 1, 6, 7
INTEGERS = {INT32: "i", INT64: "q"}
LISTED_IN = {FLOAT32: "floats", INT64: "int64s"}
"""Where numbers stand that are not stored as they lie in memory; of the other types in int32s."""
TENSOR_BYTES: dict[int, int] = {
    FLOAT32: 4, 2: 1, 3: 1, 4: 2, 5: 2, INT32: 4, INT64: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2,
    17: 1, 18: 1, 19: 1, 20: 1,
}  # fmt: skip
"""Bytes of a number by TensorProto.DataType; neither text nor numbers of four bits."""


class Span(NamedTuple):
    """Bytes of the file that are not looked at."""

    start: int
    end: int


class _File(mmap.mmap):
    """The file, mapped, and how many of its fields and numbers may still be read."""

    fields_left = MAX_FIELDS

    def count(self, number: int) -> None:
        """Raises UnfitGraphError where that are more than may be read."""
        self.fields_left -= number
        if self.fields_left < 0:
            raise UnfitGraphError(f"it has more than {MAX_FIELDS} fields")


class _Field(NamedTuple):
    """A field of a message: what it is called, what it holds ("int", "float", "text", "skipped",
    "span", "refused", or the fields of a message), and whether there may be several."""

    name: str
    kind: Any
    is_repeated: bool = False


_SHAPE = {1: _Field("dims", {1: _Field("value", "int"), 2: _Field("name", "text"),
                             3: _Field("denotation", "skipped")}, True)}  # fmt: skip
_TYPE = {1: _Field("tensor", {1: _Field("type", "int"), 2: _Field("shape", _SHAPE)}),
         6: _Field("denotation", "skipped")}  # fmt: skip
_ENTRIES = _Field("metadata", "skipped", True)
_VALUE = {
    1: _Field("name", "text"), 2: _Field("type", _TYPE), 3: _Field("doc", "skipped"), 4: _ENTRIES,
}  # fmt: skip
_TENSOR = {
    1: _Field("dims", "int", True), 2: _Field("type", "int"), 8: _Field("name", "text"),
    4: _Field("floats", "span", True), 5: _Field("int32s", "span", True),
    7: _Field("int64s", "span", True), 9: _Field("raw", "span"), 12: _Field("doc", "skipped"),
    13: _Field("weights in another file (external data)", "refused"),
    14: _Field("location", "int"), 16: _ENTRIES,
}  # fmt: skip
_ATTRIBUTE = {
    1: _Field("name", "text"), 2: _Field("f", "float"), 3: _Field("i", "int"),
    4: _Field("s", "text"), 5: _Field("an array inside", "refused"),
    6: _Field("a graph inside", "refused"), 8: _Field("ints", "int", True),
    11: _Field("graphs inside", "refused"), 13: _Field("doc", "skipped"),
    20: _Field("type", "int"),
}  # fmt: skip
_NODE = {
    1: _Field("inputs", "text", True), 2: _Field("outputs", "text", True),
    3: _Field("name", "text"), 4: _Field("op_type", "text"),
    5: _Field("attributes", _ATTRIBUTE, True), 6: _Field("doc", "skipped"),
    7: _Field("domain", "text"), 9: _ENTRIES,
}  # fmt: skip
_GRAPH = {
    1: _Field("nodes", _NODE, True), 2: _Field("name", "text"), 5: _Field("tensors", _TENSOR, True),
    10: _Field("doc", "skipped"), 11: _Field("inputs", _VALUE, True),
    12: _Field("outputs", _VALUE, True), 15: _Field("sparse constants", "refused"),
    13: _Field("inner", "skipped", True), 16: _ENTRIES,
}  # fmt: skip
_MODEL = {
    1: _Field("ir_version", "int"), 2: _Field("producer", "skipped"),
    3: _Field("producer_version", "skipped"), 4: _Field("domain", "skipped"),
    5: _Field("version", "int"), 6: _Field("doc", "skipped"), 7: _Field("graph", _GRAPH),
    8: _Field("opsets", {1: _Field("domain", "text"), 2: _Field("version", "int")}, True),
    14: _ENTRIES, 20: _Field("training", "refused"), 25: _Field("functions", "refused"),
}  # fmt: skip
"""What is not in these tables is refused, too: of an attribute types and references, for one."""
_ATTRIBUTE_VALUES = {1: "f", 2: "i", 3: "s", 7: "ints"}
"""Which field holds the value, by AttributeProto.AttributeType."""


@dataclass(frozen=True)
class OnnxTensor:
    """A constant of a graph: its shape, its type, and its integers where they are few."""

    shape: tuple[int, ...]
    type: int
    values: tuple[int, ...] | None


@dataclass(frozen=True)
class OnnxNode:
    """An operator of ONNX's own domain; an input that is left out is ""."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class OnnxGraph:
    """A graph as it stands in the file.

    Attributes:
        opset: Version of ONNX's own domain, the only one.
        nodes: In the file's order.
        tensors: The constants by name.
        inputs: Shape by name, float32; a free axis is None.
        outputs: Likewise.
    """

    opset: int
    nodes: tuple[OnnxNode, ...]
    tensors: Mapping[str, OnnxTensor]
    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, tuple[int | None, ...]]


class UnfitGraphError(Exception):
    """What is wrong with a graph, without its file's name."""


def read_onnx_graph(path: Path, *, named: Path | None = None) -> OnnxGraph:
    """The graph in a file; messages call it by `named`.

    Raises:
        ArtifactError: the file cannot be read, is no ONNX file, or has something that our graphs
            do not have.
    """
    try:
        with (
            path.open("rb") as file,
            _File(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _to_graph(_message(data, Span(0, len(data)), _MODEL, "the model"), data)
    except (UnfitGraphError, ValueError) as error:  # ValueError: an empty file
        raise unfit_graph(named or path, error) from error
    except OSError as error:
        raise unfit_graph(named or path, error.strerror or error) from error


def unfit_graph(path: Path, problem: object) -> ArtifactError:
    """The error of a file that no engine shall open."""
    return ArtifactError(
        f"{path}: cannot be loaded as a detector's graph: {problem}; copy the artifact again, or "
        "fit it or export it again"
    )


def _message(data: _File, span: Span, fields: Mapping[int, _Field], what: str) -> dict[str, Any]:
    """The fields of a message by name; lists of those that may be repeated."""
    found: dict[str, Any] = {field.name: [] for field in fields.values() if field.is_repeated}
    for number, wire, value in _wire(data, span):
        field = fields.get(number)
        if field is None or field.kind == "refused":
            name = f"field {number}" if field is None else field.name
            raise UnfitGraphError(f"{what} has {name}, which none of ours has")
        read = _value(data, field, wire, value, f"{field.name} of {what}")
        if not field.is_repeated:
            if field.name in found:
                raise UnfitGraphError(f"{what} has {field.name} twice")
            found[field.name] = read
            continue
        found[field.name] += read if isinstance(read, list) else [read]
        if len(found[field.name]) > MAX_PARTS:
            raise UnfitGraphError(f"{what} has more than {MAX_PARTS} {field.name}")
    return found


def _value(data: _File, field: _Field, wire: int, value: Any, what: str) -> Any:
    """The value of a field, given as a number or a span."""
    kind = field.kind
    if kind == "skipped":
        return None
    if kind == "int" and wire == VARINT:
        return value
    if kind == "int" and wire == BYTES and field.is_repeated:  # packed
        if value.end - value.start > MAX_PARTS:
            raise UnfitGraphError(f"{what} has more than {MAX_PARTS} bytes")
        return list(_varints(data, value))
    if kind == "float" and wire == FIXED32:
        return struct.unpack("<f", data[value.start : value.end])[0]
    if kind == "span" and wire == BYTES:
        return value
    if kind == "text" and wire == BYTES and value.end - value.start <= MAX_TEXT_BYTES:
        return data[value.start : value.end].decode("utf-8")
    if isinstance(kind, Mapping) and wire == BYTES:
        return _message(data, value, kind, what)
    raise UnfitGraphError(f"{what} is of another type, or too long")


def _wire(data: _File, span: Span) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value) of each field: an integer, or where its bytes are."""
    position, end = span
    while position < end:
        data.count(1)
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, position = _varint(data, position, end)
            yield number, wire, _signed(value)
            continue
        if wire == BYTES:
            length, position = _varint(data, position, end)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise UnfitGraphError(f"byte {position} begins no field")
        if length > end - position:
            raise UnfitGraphError(f"field {number} at byte {position} ends behind its message")
        yield number, wire, Span(position, position + length)
        position += length


def _varint(data: _File, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise UnfitGraphError("the file ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), position
    raise UnfitGraphError(f"the number before byte {position} has no end")


def _varints(data: _File, span: Span) -> Iterator[int]:
    position = span.start
    data.count(span.end - span.start)
    while position < span.end:
        value, position = _varint(data, position, span.end)
        yield _signed(value)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _to_graph(model: Mapping[str, Any], data: _File) -> OnnxGraph:
    opsets = [(opset.get("domain", ""), opset.get("version", 0)) for opset in model["opsets"]]
    if len(opsets) != 1 or opsets[0][0] not in OWN_DOMAIN:
        raise UnfitGraphError(
            f"it has operators of {', '.join(repr(name) for name, _ in opsets) or 'no set'}; only "
            "ONNX's own may be in it"
        )
    if "graph" not in model:
        raise UnfitGraphError("it holds no graph")
    graph = model["graph"]
    return OnnxGraph(
        opsets[0][1],
        tuple(map(_to_node, graph["nodes"])),
        _by_name(((t.get("name", ""), _to_tensor(t, data)) for t in graph["tensors"]), "constants"),
        _by_name(map(_to_argument, graph["inputs"]), "inputs"),
        _by_name(map(_to_argument, graph["outputs"]), "outputs"),
    )


def _by_name(pairs: Iterable[tuple[str, Any]], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if not name or name in found:
            raise UnfitGraphError(f"two of its {what} are called {name!r}, or one has no name")
        found[name] = value
    return found


def _to_node(node: Mapping[str, Any]) -> OnnxNode:
    op_type = node.get("op_type", "")
    if node.get("domain", "") not in OWN_DOMAIN:
        raise UnfitGraphError(f"{op_type!r} is an operator of {node['domain']!r}, not ONNX's own")
    return OnnxNode(
        op_type,
        tuple(node["inputs"]),
        tuple(node["outputs"]),
        _by_name(map(_to_attribute, node["attributes"]), f"attributes of {op_type!r}"),
    )


def _to_attribute(attribute: Mapping[str, Any]) -> tuple[str, Any]:
    name, key = attribute.get("name", ""), _ATTRIBUTE_VALUES.get(attribute.get("type", 0))
    if key is None:
        raise UnfitGraphError(f"the attribute {name!r} is neither number nor text")
    value = attribute.get(key, "" if key == "s" else 0)
    return name, tuple(value) if key == "ints" else value


def _to_argument(value: Mapping[str, Any]) -> tuple[str, tuple[int | None, ...]]:
    name, tensor = value.get("name", ""), value.get("type", {}).get("tensor", {})
    if tensor.get("type") != FLOAT32 or "shape" not in tensor:
        raise UnfitGraphError(f"{name!r} is no float32 array with a shape")
    axes = tensor["shape"]["dims"]
    if len(axes) > MAX_AXES:
        raise UnfitGraphError(f"{name!r} has {len(axes)} axes")
    return name, tuple(axis.get("value") for axis in axes)


def _to_tensor(tensor: Mapping[str, Any], data: _File) -> OnnxTensor:
    name, shape, kind = tensor.get("name", ""), tuple(tensor["dims"]), tensor.get("type", 0)
    if tensor.get("location", 0) != 0:
        raise UnfitGraphError(f"the constant {name!r} lies in another file")
    if kind not in TENSOR_BYTES or len(shape) > MAX_AXES or any(axis < 0 for axis in shape):
        raise UnfitGraphError(f"the constant {name!r} has type {kind} and shape {shape}")
    length, size = math.prod(shape), TENSOR_BYTES[kind]
    listed = [span for key in ("floats", "int32s", "int64s") for span in tensor[key]]
    raw: Span | None = tensor.get("raw")
    if raw is not None and not listed and raw.end - raw.start == length * size:
        return OnnxTensor(shape, kind, _raw_integers(data, raw, kind, length))
    found = None if raw is not None else _listed_numbers(tensor, data)
    if found is None or len(found) != length:
        raise UnfitGraphError(
            f"the constant {name!r} does not hold the {length} numbers of its shape {shape}"
        )
    if kind == INT32 and (beyond := [number for number in found if not -(2**31) <= number < 2**31]):
        raise UnfitGraphError(f"the constant {name!r} holds {beyond[0]}, which is no int32")
    is_read = kind in INTEGERS and length <= MAX_SMALL_VALUES
    return OnnxTensor(shape, kind, tuple(found) if is_read else None)


def _raw_integers(data: _File, raw: Span, kind: int, length: int) -> tuple[int, ...] | None:
    if kind not in INTEGERS or length > MAX_SMALL_VALUES:
        return None
    return struct.unpack(f"<{length}{INTEGERS[kind]}", data[raw.start : raw.end])


def _listed_numbers(tensor: Mapping[str, Any], data: _File) -> Sequence[int] | None:
    """The numbers of a small constant that are not stored as they lie in memory; None for others
    and where the field is not the one of the type."""
    field, packed = LISTED_IN.get(tensor.get("type", 0), "int32s"), []
    for key in ("floats", "int32s", "int64s"):
        for span in tensor[key]:
            if key != field or span.end - span.start > MAX_TEXT_BYTES:
                return None
            packed.append(span)
    if field == "floats":
        return b"".join(data[span.start : span.end] for span in packed)[::4]
    return [value for span in packed for value in _varints(data, span)]
