"""The run half of the branch. Needs no torch on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.branch import HOST, Place, check_graph
from mmad_fast.methods.branches.feature_levels.options import (
    NUM_LEVELS,
    FeatureLevelOptions,
    level_name,
)
from mmad_fast.stage_clock import StageClock

OUTPUT_NAMES = tuple(map(level_name, range(NUM_LEVELS)))


class FeatureLevelExtractor:
    """The frozen network. `levels` is thread-safe."""

    def __init__(self, graphs: Mapping[str, Engine], place: Place = HOST) -> None:
        """Takes graphs image (1, 3, R, R) -> level_1, level_2, level_3 (1, C, H, W), by name: one
        for each set of BatchNorm statistics; and where they run."""
        self._graphs = graphs
        self._place = place

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        choice: EngineChoice,
        options: FeatureLevelOptions,
        names: Sequence[str],
        place: Place = HOST,
    ) -> FeatureLevelExtractor:
        """The network in an artifact, run as the choice says.

        Args:
            artifact: It has the graphs.
            choice: Says what runs them.
            options: Say how large their inputs and outputs are.
            names: Of the graphs; one that stands there twice is opened once.
            place: Where they run.

        Raises:
            ArtifactError: a graph is missing or does not fit the options.
            BackendUnavailableError: no such engine, or it cannot run there.
        """
        side = options.rgb_size
        shapes = [(1, *shape) for shape in options.level_shapes]
        graphs = {}
        for name in dict.fromkeys(names):
            graphs[name] = place.open_graph(choice, name)
            check_graph(
                artifact,
                name,
                graphs[name],
                inputs={"image": (1, 3, side, side)},
                outputs=dict(zip(OUTPUT_NAMES, shapes, strict=True)),
            )
        return cls(graphs, place)

    def levels(self, name: str, image: Any, clock: StageClock) -> tuple[Any, ...]:
        """The three maps (1, C, H, W) float32, shallow to deep, that a graph makes of an image
        (1, 3, R, R), where it runs."""
        with clock.stage("teacher"):
            outputs = self._place.run_all(self._graphs[name], image=image)
            return tuple(outputs[output] for output in OUTPUT_NAMES)
