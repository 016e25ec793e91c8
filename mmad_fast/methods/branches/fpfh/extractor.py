"""The run half of the branch. Needs no torch."""

from __future__ import annotations

from typing import Any

from mmad_fast.methods.branches.branch import HOST, Place
from mmad_fast.methods.branches.fpfh.options import FpfhOptions
from mmad_fast.ops.fpfh import NUM_CHANNELS as NUM_CHANNELS
from mmad_fast.ops.fpfh import OP, fpfh
from mmad_fast.stage_clock import StageClock

MIN_POINTS = 3
"""That span a plane: of fewer there is no surface to describe."""


class FpfhExtractor:
    """Histograms of the points of a scan. `descriptors` is thread-safe."""

    def __init__(self, options: FpfhOptions, place: Place = HOST) -> None:
        """Takes the place where the points are.

        Raises:
            BackendUnavailableError: the op cannot run there.
        """
        self._options = options
        self._backend = OP.resolve(device=place.device_kind).name

    def descriptors(self, points: Any, clock: StageClock) -> Any:
        """(N, 33) float32 histograms of points (N, 3) float32 metres, where they are."""
        options = self._options
        with clock.stage("fpfh"):
            return fpfh(
                points,
                normal_neighbors=options.fpfh_normal_neighbors,
                normal_radius=options.fpfh_normal_radius,
                max_neighbors=options.fpfh_neighbors,
                radius=options.fpfh_radius,
                orientation=options.fpfh_orientation,
                backend=self._backend,
            )
