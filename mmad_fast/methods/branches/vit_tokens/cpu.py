"""The run half of the branch on the CPU. Needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.branch import check_inputs
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

GRAPH = "rgb"


class RgbExtractor:
    """The frozen RGB backbone. `tokens` is thread-safe."""

    def __init__(self, engine: Engine) -> None:
        """Takes the graph "rgb": image (1, 3, R, R) -> tokens (1, T, C2)."""
        self._engine = engine

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, choice: EngineChoice, options: VitTokenOptions
    ) -> RgbExtractor:
        """The RGB backbone in an artifact, run as the choice says.

        Raises:
            ArtifactError: the graph is missing or does not fit the options.
            BackendUnavailableError: no such engine.
        """
        graph = choice.open(GRAPH)
        check_graph(artifact, graph, options)
        return cls(graph)

    def tokens(self, prepared: PreparedScan, clock: StageClock) -> NDArray[np.float32]:
        """(T, C2) float32 RGB tokens of a prepared scan, row-major on the token grid."""
        with clock.stage("rgb_tokens"):
            tokens: NDArray[np.float32] = self._engine.run({"image": prepared.rgb[None]})["tokens"]
        return tokens[0]


def check_graph(artifact: Artifact, graph: Engine, options: VitTokenOptions) -> None:
    """Raises ArtifactError where the graph does not fit the manifest's parameters."""
    side = options.rgb_size
    check_inputs(artifact, graph, {"image": (1, 3, side, side)})


def tokens_shape(artifact: Artifact) -> tuple[int, ...]:
    """(1, T, C2) of the RGB tokens, by an artifact's manifest."""
    return artifact.output_shape(GRAPH, "tokens")
