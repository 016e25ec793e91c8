"""The run half of the branch. Needs no torch on the CPU."""

from __future__ import annotations

from typing import Any

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.branch import HOST, Place, check_graph
from mmad_fast.methods.branches.cnn_pyramid.options import CnnPyramidOptions
from mmad_fast.stage_clock import StageClock

GRAPH = "rgb"


class CnnPyramidExtractor:
    """The frozen convolutional network. `maps` is thread-safe."""

    def __init__(self, engine: Engine, options: CnnPyramidOptions, place: Place = HOST) -> None:
        """Takes the graph "rgb": image (1, 3, R, R) -> feature maps (1, C, H, W) by the options'
        output names; and where it runs."""
        self._engine = engine
        self._output_names = options.output_names
        self._place = place

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        choice: EngineChoice,
        options: CnnPyramidOptions,
        place: Place = HOST,
    ) -> CnnPyramidExtractor:
        """The convolutional network in an artifact, run as the choice says.

        Raises:
            ArtifactError: the graph is missing or does not fit the options.
            BackendUnavailableError: no such engine, or it cannot run there.
        """
        graph = place.open_graph(choice, GRAPH)
        side = options.rgb_size
        shapes = [(1, *shape) for shape in options.map_shapes]
        check_graph(
            artifact,
            GRAPH,
            graph,
            inputs={"image": (1, 3, side, side)},
            outputs=dict(zip(options.output_names, shapes, strict=True)),
        )
        return cls(graph, options, place)

    def maps(self, image: Any, clock: StageClock) -> tuple[Any, ...]:
        """Per output of the options the feature map (C, H, W) float32 of an image (1, 3, R, R),
        where the graph runs."""
        with clock.stage("rgb_maps"):
            outputs = self._place.run_all(self._engine, image=image)
            return tuple(outputs[name][0] for name in self._output_names)
