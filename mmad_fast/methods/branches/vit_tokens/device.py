"""The run half of the branch on a CUDA device. Needs torch, whose tensors hold the arrays."""

from __future__ import annotations

from mmad_fast.artifact import Artifact
from mmad_fast.engines import DeviceEngine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor
from mmad_fast.methods.branches.vit_tokens.cpu import GRAPH, check_graph
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.stage_clock import StageClock


class DeviceRgbExtractor:
    """The frozen RGB backbone on a CUDA device."""

    def __init__(self, engine: DeviceEngine, stream: DeviceStream) -> None:
        """Takes the graph "rgb", which runs in the stream; see cpu.RgbExtractor."""
        self._engine = engine
        self._stream = stream

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        choice: EngineChoice,
        options: VitTokenOptions,
        stream: DeviceStream,
    ) -> DeviceRgbExtractor:
        """The RGB backbone in an artifact, run in the stream as the choice says.

        Raises:
            ArtifactError: the graph does not fit the options.
            BackendUnavailableError: the engine cannot use the device.
        """
        graph = stream.open_graph(choice, GRAPH)
        check_graph(artifact, graph, options)
        return cls(graph, stream)

    def tokens(self, image: Tensor, clock: StageClock) -> Tensor:
        """(T, C2) float32 tokens of an image (1, 3, R, R), in the current stream."""
        with clock.stage("rgb_tokens"):
            return self._stream.run(self._engine, image=image)[0]
