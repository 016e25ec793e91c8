"""What the manifest says of one engine of an artifact: its graphs exported for one target."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmad_fast.errors import ArtifactError

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""What the graphs of an engine compute in."""


class EngineKey(NamedTuple):
    """What tells the engines of an artifact apart: a second export of the same key replaces."""

    target: str
    precision: str
    batch: tuple[int, int, int]
    sms: tuple[int, ...]


@dataclass(frozen=True)
class EngineRecord:
    """The graphs of an artifact, exported for one target.

    Attributes:
        target: What they were exported for, a name in mmad_fast.export's TARGETS; a newer version
            may know more.
        precision: A name in PRECISIONS.
        batch: {"min", "opt", "max"}: scans per run that the graphs take.
        sms: Compute capabilities that they were built for, ascending, e.g. [86, 89]; empty where
            they are bound to none.
        library: The library that built them, with its version, e.g. "tensorrt-rtx 1.7.1.116".
        graphs: Files by graph name; the first one is what an engine opens.
        build_s: Seconds that building took.
        calibration_scans: Scans that the ranges of int8 and fp8 came from; 0 for other precisions.
        measured: {"engine", "machine" (CPU model), "threads", "p50_ms" (sum over the graphs)}, or
            None.
        golden: {"engine", "map_difference", "score"} of the golden scan when it was exported, or
            None where it could not run there.
    """

    target: str
    precision: str
    batch: dict[str, int]
    sms: list[int]
    library: str
    graphs: dict[str, list[str]]
    build_s: float
    calibration_scans: int
    measured: dict[str, Any] | None = None
    golden: dict[str, Any] | None = None

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], *, manifest: Path, graphs: Sequence[str]
    ) -> EngineRecord:
        """The record in a manifest.

        Args:
            content: As manifest.ENGINE says.
            manifest: Its file, for messages.
            graphs: The graphs that each engine must have.

        Raises:
            ArtifactError: it has other graphs.
        """
        record = cls(**content)
        if set(record.graphs) != set(graphs):
            raise ArtifactError(
                f"{manifest}: an engine has the graphs {sorted(record.graphs)}, not "
                f"{', '.join(graphs)}; copy the artifact again, or fit it again"
            )
        return record

    @property
    def key(self) -> EngineKey:
        """What tells it apart from the artifact's other engines."""
        batch = (self.batch["min"], self.batch["opt"], self.batch["max"])
        return EngineKey(self.target, self.precision, batch, tuple(self.sms))

    @property
    def files(self) -> tuple[str, ...]:
        """All its files."""
        return tuple(name for names in self.graphs.values() for name in names)


def export_command(artifact: Path | str, key: EngineKey) -> str:
    """The command that exports an engine of an artifact, for messages."""
    parts = ["mmad-fast", "export", str(artifact), "--to", key.target, "--precision", key.precision]
    if key.sms:
        parts += ["--sm", ",".join(map(str, key.sms))]
    if key.batch != (1, 1, 1):
        is_fixed = len(set(key.batch)) == 1
        parts += ["--batch", str(key.batch[0]) if is_fixed else ",".join(map(str, key.batch))]
    return shlex.join(parts)


def engine_file_name(graph: str, key: EngineKey, ending: str) -> str:
    """The name of a graph's file; no two engines of an artifact share one.

    Args:
        graph: The graph's name.
        key: The engine.
        ending: What tells the target, e.g. "tensorrt-rtx.engine".
    """
    sizes = key.batch[:1] if len(set(key.batch)) == 1 else key.batch
    batch = "" if key.batch == (1, 1, 1) else "batch" + "-".join(map(str, sizes))
    sms = "-".join(f"sm{sm}" for sm in key.sms)
    return ".".join(part for part in (graph, key.precision, batch, sms, ending) if part)


def own_precision(parameters: Mapping[str, Any]) -> str:
    """The precision of the graphs that a detector was fitted with, as engines name it."""
    return "int8" if parameters.get("precision") == "int8" else "fp32"
