"""The layers of a TensorRT engine: what the engine inspector, or the builder's log, says of them.

An engine can be inspected on its GPU only. Where it is built without one, the builder's detailed
log holds the same list, as text. Both become the same records here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmad_fast.errors import InvalidInputError

# An engine's compiler (Myelin) calls a kernel after the operators fused in it, by four letters
# each: __myl_ReshTranSlicMul_myl0_3.
OPERATORS = re.compile(r"[A-Z][a-z0-9]*")
GENERATED_KERNEL_NAME = re.compile(r"^__myl_([A-Za-z0-9]+)_myl\d+_\d+$")
MOVES = frozenset({"Cast", "Conc", "Copy", "Expa", "Gath", "Move", "Resh", "Slic", "Tran"})
"""Operators that compute nothing."""
MOVE_KINDS = frozenset({"copy", "reformat", "shuffle", "concat", "slice", "cast", "constant"})
HOST_KINDS = frozenset({"shape_call", "signal", "wait", "shape", "nooplayer", "noop"})
"""Layers that start no kernel."""
FUSED_ATTENTION = re.compile(r"(?<![a-z])f?mha", re.IGNORECASE)
GEMM = re.compile(r"gemm|matrix_?multiply|matmul|\bfc\d*_|fully_?connected", re.IGNORECASE)
NORM = re.compile(r"Mean.*Sqrt|layer_?norm", re.IGNORECASE)

TEXT_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*)(?P<rest>.*)$", re.M)
TEXT_TENSORS = r": \[(?: (\{.*?\}))?\]"
TEXT_DIMENSIONS = re.compile(r"Dimensions: \[([^\]]*)\]")
ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class EngineTensor:
    """A layer's input or output.

    Attributes:
        name: In the engine.
        shape: Its axes; -1 is dynamic.
        dtype: As TensorRT calls it: Float, Half, BFloat16, Int8, FP8.
        format: How it lies in memory, in TensorRT's words.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine, mostly one kernel.

    Attributes:
        name: In the engine.
        kind: TensorRT's type of layer, e.g. kgen (a generated kernel), gemm, runtime_fusion.
        inputs: Tensors it reads, constants excluded.
        outputs: Tensors it writes.
        onnx_nodes: Nodes of the graph that it is part of.
        tactic: The kernel that was chosen; empty where that is done when the engine is loaded.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    onnx_nodes: tuple[str, ...]
    tactic: str

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> EngineLayer:
        """The layer that `dataclasses.asdict` was called of."""
        tensors = {
            key: tuple(EngineTensor(**{**t, "shape": tuple(t["shape"])}) for t in record[key])
            for key in ("inputs", "outputs")
        }
        return cls(**{**record, **tensors, "onnx_nodes": tuple(record["onnx_nodes"])})


@dataclass(frozen=True)
class LayerSummary:
    """What an engine's layers are.

    Attributes:
        num_layers: All of them.
        kernels: Those that run on the GPU.
        fused_attention: Kernels that are a whole attention: both products and the softmax.
        separate_softmax: Softmaxes outside of those.
        gemms: Kernels with a matrix product, whatever is fused to it; attention excluded.
        fused_norms: Kernels with a layer norm, whatever is fused to it.
        reformats: Kernels that only move, reorder or cast.
        kernels_per_block: Kernels by attentions; 0 where there is no attention.
    """

    num_layers: int
    kernels: int
    fused_attention: int
    separate_softmax: int
    gemms: int
    fused_norms: int
    reformats: int
    kernels_per_block: float


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers, in the order in which they run.

    Args:
        text: The engine inspector's information of an engine, in JSON or one line per layer; or a
            builder's log that contains the latter.

    Raises:
        InvalidInputError: there are no layers in it.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"the layers are {type(text).__name__}; they must be a text")
    if text.lstrip().startswith("{"):
        layers = _parse_json(text)
    else:
        layers = tuple(_text_layer(match) for match in TEXT_LAYER.finditer(text))
    if not layers:
        raise InvalidInputError(
            "there are no layers in the text; build the engine with profiling verbosity DETAILED "
            "and pass what the engine inspector or the builder's log says"
        )
    return layers


def _text_layer(match: re.Match[str]) -> EngineLayer:
    rest = match["rest"]
    tactic = re.search(r"TacticName: ([^,]*)", rest)
    return EngineLayer(
        match["name"],
        match["kind"],
        _text_tensors("Inputs", rest),
        _text_tensors("Outputs", rest),
        tuple(ONNX_NODE.findall(rest)),
        tactic[1].strip() if tactic else "",
    )


def _text_tensors(field: str, rest: str) -> tuple[EngineTensor, ...]:
    found = re.search(field + TEXT_TENSORS, rest)
    if found is None or found[1] is None:
        return ()
    tensors = []
    for entry in found[1].strip("{} ").split("}, {"):
        name, _, facts = entry.strip().removeprefix("Name: ").partition(", ")
        shape = TEXT_DIMENSIONS.search(facts)
        axes = () if shape is None else tuple(int(axis) for axis in shape[1].split(",") if axis)
        tensors.append(EngineTensor(name, axes, *_text_type(facts)))
    return tuple(tensors)


def _text_type(facts: str) -> tuple[str, str]:
    """(dtype, format); until TensorRT 10 they were one phrase."""
    both = re.search(r"Format/Datatype: (.*)$", facts)
    if both is not None:
        return both[1].strip(), both[1].strip()
    dtype = re.search(r"Datatype: ([^,]*)", facts)
    layout = re.search(r"Format: (.*)$", facts)
    return (dtype[1].strip() if dtype else ""), (layout[1].strip() if layout else "")


def _parse_json(text: str) -> tuple[EngineLayer, ...]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(
            f"the layers are no JSON ({error}); pass the text of EngineInspector."
            "get_engine_information unchanged"
        ) from error
    layers = content.get("Layers", [content] if "LayerType" in content else [])
    return tuple(_json_layer(layer) for layer in layers)


def _json_layer(layer: Any) -> EngineLayer:
    if isinstance(layer, str):  # profiling verbosity LAYER_NAMES_ONLY
        return EngineLayer(layer, "", (), (), (), "")
    return EngineLayer(
        str(layer.get("Name", "")),
        str(layer.get("LayerType", "")),
        _json_tensors(layer.get("Inputs", [])),
        _json_tensors(layer.get("Outputs", [])),
        tuple(ONNX_NODE.findall(str(layer.get("Metadata", "")))),
        str(layer.get("TacticName", "")),
    )


def _json_tensors(tensors: Sequence[Mapping[str, Any]]) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(
            str(tensor.get("Name", "")),
            tuple(int(axis) for axis in tensor.get("Dimensions", ())),
            str(tensor.get("Datatype", tensor.get("Format/Datatype", ""))),
            str(tensor.get("Format", tensor.get("Format/Datatype", ""))),
        )
        for tensor in tensors
    )


def summarize(layers: Sequence[EngineLayer]) -> LayerSummary:
    """How many layers of which sort there are.

    Args:
        layers: Of one engine.
    """
    kernels = [layer for layer in layers if layer.kind.lower() not in HOST_KINDS]
    # A reformat is named after the layer that it serves, so what moves is sorted out first.
    computing = [layer for layer in kernels if not _is_move(layer)]
    attention = [layer for layer in computing if _is_fused_attention(layer)]
    others = [layer for layer in computing if not _is_fused_attention(layer)]
    softmaxes = sum(map(_is_softmax, others))
    blocks = len(attention) + softmaxes
    return LayerSummary(
        num_layers=len(layers),
        kernels=len(kernels),
        fused_attention=len(attention),
        separate_softmax=softmaxes,
        gemms=sum(map(_is_gemm, others)),
        fused_norms=sum(NORM.search(layer.name) is not None for layer in others),
        reformats=len(kernels) - len(computing),
        kernels_per_block=round(len(kernels) / blocks, 2) if blocks else 0.0,
    )


def _operators(layer: EngineLayer) -> tuple[str, ...]:
    """The operators in a generated kernel, abbreviated; none where its name does not list them."""
    name = GENERATED_KERNEL_NAME.match(layer.name)
    return () if name is None else tuple(OPERATORS.findall(name[1]))


def _is_fused_attention(layer: EngineLayer) -> bool:
    return FUSED_ATTENTION.search(f"{layer.name} {layer.tactic}") is not None


def _is_softmax(layer: EngineLayer) -> bool:
    """The kernel that sums the exponentials; dividing by the sum may be a kernel of its own."""
    operators = _operators(layer)
    by_kind = "softmax" in f"{layer.kind} {layer.name}".lower()
    return by_kind or ("Exp" in operators and "Sum" in operators) or "Soft" in operators


def _is_gemm(layer: EngineLayer) -> bool:
    return "Fc" in _operators(layer) or GEMM.search(f"{layer.kind} {layer.name}") is not None


def _is_move(layer: EngineLayer) -> bool:
    operators = _operators(layer)
    return layer.kind.lower() in MOVE_KINDS or (bool(operators) and MOVES.issuperset(operators))
