"""MMRD and its kin on a CUDA device: the steps of detector.py, with all graphs and the maps on the
device. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor
from mmad_fast.methods.mmrd.detector import MmrdPipeline, open_parts


class DeviceMmrdPipeline(MmrdPipeline):
    """A fitted detector on a CUDA device. `score` is thread-safe: scans share one stream.

    The device works behind the host: "scoring" waits for all of its steps.
    """

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> DeviceMmrdPipeline:
        """The pipeline in an artifact, on torch's current CUDA device.

        Raises:
            ArtifactError: a graph or parameter is missing or damaged.
            BackendUnavailableError: the engine cannot use the device.
        """
        return cls(*open_parts(artifact, choice, DeviceStream.new()))

    def _cosine_map(self, targets: Sequence[Tensor], restored: Sequence[Tensor]) -> NDArray:
        anomaly_map: Tensor = super()._cosine_map(targets, restored)
        return anomaly_map.cpu().numpy()
