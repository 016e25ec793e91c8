"""What a branch is: a frozen feature extractor that methods share. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import ArtifactError, EmptyScanError
from mmad_fast.methods.options import MethodOptions, option
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

Extractor = TypeVar("Extractor")


@dataclass(frozen=True)
class Branch:
    """What is known of a branch without its networks. One that computes its features by formula has
    no weights.

    Attributes:
        key: Its name in a manifest's weights, and the prefix of its options.
        options: The dataclass of its options, which those of a family that runs it extend.
        identity: Those of its options that say which network it is.
        describe: What a table calls it, given these options of a row.
        checkpoint: Name of its official weights in mmad_fast.backbones, given the family's options;
            None where it has no weights.
    """

    key: str
    options: type
    identity: tuple[str, ...]
    describe: Callable[[Mapping[str, Any]], str]
    checkpoint: Callable[[Any], str] | None


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


class Place(Protocol):
    """Where a detector's graphs run and its arrays lie: HOST, or a DeviceStream.

    Attributes:
        device_kind: "cpu" or "cuda".
    """

    device_kind: ClassVar[str]

    def open_graph(self, choice: EngineChoice, name: str) -> Any:
        """The graph of that name, run there as the choice says.

        Raises:
            BackendUnavailableError: the engine cannot run there.
        """

    def upload_scan(self, prepared: PreparedScan, clock: StageClock) -> tuple[Any, Any]:
        """(image (1, 3, R, R), points (N, 3)) of a scan, there."""

    def upload(self, array: NDArray) -> Any:
        """The array, there."""

    def upload_rows(self, rows: SparseRows) -> SparseRows:
        """The rows with their arrays there."""

    def run(self, engine: Any, **inputs: Any) -> Any:
        """The one output of a graph, from arrays that lie there."""

    def run_all(self, engine: Any, **inputs: Any) -> Mapping[str, Any]:
        """All outputs of a graph by name, from arrays that lie there."""

    def current(self) -> AbstractContextManager[None]:
        """In which a scan is worked on."""


class Host:
    """The host, whose arrays are NumPy's."""

    device_kind: ClassVar[str] = "cpu"

    def open_graph(self, choice: EngineChoice, name: str) -> Engine:
        """See Place."""
        return choice.open(name)

    def upload_scan(self, prepared: PreparedScan, clock: StageClock) -> tuple[NDArray, NDArray]:
        """See Place."""
        return prepared.rgb[None], prepared.points

    def upload(self, array: NDArray) -> NDArray:
        """See Place."""
        return array

    def upload_rows(self, rows: SparseRows) -> SparseRows:
        """See Place."""
        return rows

    def run(self, engine: Engine, **inputs: NDArray) -> NDArray:
        """See Place."""
        (output,) = self.run_all(engine, **inputs).values()
        return output

    def run_all(self, engine: Engine, **inputs: NDArray) -> Mapping[str, NDArray]:
        """See Place."""
        return engine.run(inputs)

    def current(self) -> AbstractContextManager[None]:
        """See Place."""
        return nullcontext()


HOST = Host()


@dataclass(frozen=True)
class GraphOptions(MethodOptions):
    """What the branches with graphs of matrix products or convolutions share.

    Attributes:
        precision: Of these: "fp32", or "int8", which approximates.
    """

    precision: Literal["fp32", "int8"] = option(
        "fp32",
        "Of the backbones' products; int8 approximates.",
        in_rows=True,
        earlier_names={"float32": "fp32"},
    )

    @property
    def is_exact(self) -> bool:
        """See MethodOptions; a family with approximations of its own adds them."""
        return self.precision == "fp32"


def require_points(prepared: PreparedScan, minimum: int) -> None:
    """Raises EmptyScanError where a scan has fewer foreground points."""
    num_points = len(prepared.points)
    if num_points >= minimum:
        return
    label = f"scan {prepared.name!r}" if prepared.name else "the scan"
    raise EmptyScanError(
        f"{label} has {num_points} foreground points on the {prepared.grid_size}x"
        f"{prepared.grid_size} grid, the detector needs at least {minimum}; check that the part "
        "is in view (an empty fixture is no scan), that the unit is right (unit='mm' for "
        "millimetres), and that the background plane is not the part itself"
    )


def check_graph(
    artifact: Artifact,
    name: str,
    graph: Engine,
    *,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises ArtifactError where an opened graph is not the one that the parameters need, or not
    the one of the manifest: later steps are sized by either.

    Args:
        artifact: It has the manifest.
        name: Of the graph.
        graph: As opened.
        inputs: Shape by name, of all.
        outputs: Likewise; -1 where the graph decides.
    """
    recorded = artifact.graph_record(name)
    for kind, wanted, found in (
        ("inputs", inputs, graph.input_shapes),
        ("outputs", outputs, graph.output_shapes),
    ):
        fits = found.keys() == wanted.keys() and all(
            len(shape) == len(found[key])
            and all(axis in (-1, given) for axis, given in zip(shape, found[key], strict=True))
            for key, shape in wanted.items()
        )
        if not fits:
            raise ArtifactError(
                f"{artifact.path}: the graph {name!r} has {kind} {dict(found)}, the manifest's "
                f"parameters need {dict(wanted)}; fit the detector again"
            )
        listed = {key: tuple(shape) for key, shape in recorded[kind].items()}
        if listed != dict(found):
            raise ArtifactError(
                f"{artifact.path}: the graph {name!r} has {kind} {dict(found)}, the manifest says "
                f"{listed}; fit the detector again"
            )
