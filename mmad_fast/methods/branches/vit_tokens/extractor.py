"""The run half of the branch. Needs no torch on the CPU."""

from __future__ import annotations

from typing import Any

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.branch import HOST, Place, check_graph
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.stage_clock import StageClock

GRAPH = "rgb"


class RgbExtractor:
    """The frozen RGB backbone. `tokens` is thread-safe."""

    def __init__(self, engine: Engine, place: Place = HOST) -> None:
        """Takes the graph "rgb": image (1, 3, R, R) -> tokens (1, T, C2); and where it runs."""
        self._engine = engine
        self._place = place

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        choice: EngineChoice,
        options: VitTokenOptions,
        place: Place = HOST,
    ) -> RgbExtractor:
        """The RGB backbone in an artifact, run as the choice says.

        Raises:
            ArtifactError: the graph is missing or does not fit the options.
            BackendUnavailableError: no such engine, or it cannot run there.
        """
        graph = place.open_graph(choice, GRAPH)
        side, num_tokens = options.rgb_size, options.token_grid**2
        check_graph(
            artifact,
            GRAPH,
            graph,
            inputs={"image": (1, 3, side, side)},
            outputs={"tokens": (1, num_tokens, -1)},
        )
        return cls(graph, place)

    def tokens(self, image: Any, clock: StageClock, *, stage: str = "rgb_tokens") -> Any:
        """(T, C2) float32 tokens of an image (1, 3, R, R), where the graph runs."""
        with clock.stage(stage):
            return self._place.run(self._engine, image=image)[0]


def tokens_shape(artifact: Artifact) -> tuple[int, ...]:
    """(1, T, C2) of the RGB tokens, by an artifact's manifest."""
    return artifact.output_shape(GRAPH, "tokens")
