"""What a branch is: a frozen feature extractor that methods share. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.errors import ArtifactError
from mmad_fast.methods.options import MethodOptions, option

Extractor = TypeVar("Extractor")


@dataclass(frozen=True)
class Branch:
    """What is known of a branch without its networks.

    Attributes:
        key: Its name in a manifest's weights, and the prefix of its options.
        options: The dataclass of its options, which those of a family that runs it extend.
        identity: Those of its options that say which network it is.
        describe: What a table calls it, given these options of a row.
        checkpoint: Name of its official weights in mmad_fast.backbones, given the family's options.
    """

    key: str
    options: type
    identity: tuple[str, ...]
    describe: Callable[[Mapping[str, Any]], str]
    checkpoint: Callable[[Any], str]


@dataclass(frozen=True)
class BranchPart(Generic[Extractor]):
    """A branch of a detector that is being fitted: ready to extract, and to be written.

    Attributes:
        extractor: Its graphs, loaded.
        graphs: ONNX file by graph name.
        source: Where its weights came from, JSON types.
        tensors: What the extractor and the dense reference need beside the graphs, by name.
    """

    extractor: Extractor
    graphs: Mapping[str, Path]
    source: Mapping[str, Any]
    tensors: Mapping[str, NDArray]


@dataclass(frozen=True)
class GraphOptions(MethodOptions):
    """What the branches with graphs of matrix products share.

    Attributes:
        precision: Of the products: "fp32", or "int8", which approximates.
    """

    precision: Literal["fp32", "int8"] = option(
        "fp32",
        "Of the backbones' matrix products; int8 approximates.",
        in_rows=True,
        earlier_names={"float32": "fp32"},
    )


def check_inputs(artifact: Artifact, graph: Engine, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ArtifactError where an input of a graph has another shape than wanted."""
    for name, shape in wanted.items():
        if graph.input_shapes.get(name) != shape:
            raise ArtifactError(
                f"{artifact.path}: graph input {name!r} has shape "
                f"{graph.input_shapes.get(name)}, the manifest's parameters need {shape}; fit the "
                "detector again"
            )
