"""AST on a CUDA device: the steps of detector.py, with both graphs on the device. Needs torch."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.ast.detector import AstPipeline, FeatureExtractor, open_parts
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor


class DeviceFeatureExtractor(FeatureExtractor):
    """As detector.FeatureExtractor, in a stream."""

    place: DeviceStream

    def _join(self, parts: list[Any]) -> Tensor:
        """(C, M, M) on the device, of maps there and depth from the host."""
        on_device = [
            part if isinstance(part, torch.Tensor) else self.place.upload(part) for part in parts
        ]
        return torch.cat(on_device)


class DeviceAstPipeline(AstPipeline):
    """A fitted AST detector on a CUDA device. `score` is thread-safe: scans share one stream.

    The device works behind the host: "networks" waits for all of its steps.
    """

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> DeviceAstPipeline:
        """The pipeline in an artifact, on torch's current CUDA device.

        Raises:
            ArtifactError: a graph or parameter is missing or damaged.
            BackendUnavailableError: the engine cannot use the device.
        """
        return cls(*open_parts(artifact, choice, DeviceFeatureExtractor, DeviceStream.new()))

    def _difference(self, features: Tensor) -> NDArray:
        difference: Tensor = super()._difference(features)
        return difference.cpu().numpy()
