"""Features of point groups: the network with its graph, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from conftest import NUM_GROUPS, POINT_DIM, TINY_PARAMETERS

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import ArtifactError, EmptyScanError, InvalidInputError, WeightsError
from mmad_fast.methods.branches.branch import require_points
from mmad_fast.methods.branches.point_groups.extractor import (
    GRAPH,
    PointExtractor,
    point_channels,
)
from mmad_fast.methods.branches.point_groups.graph import build_point_groups
from mmad_fast.methods.branches.point_groups.options import EMBEDDER_PREFIX, POINT_STATISTICS_PREFIX
from mmad_fast.methods.cfm.detector import CfmPipeline
from mmad_fast.methods.fit_request import FitTask
from mmad_fast.ops.inverse_distance_interpolation import inverse_distance_interpolation
from mmad_fast.scan import PreparedScan, Scan
from mmad_fast.stage_clock import StageClock


def test_groups_of_a_scan(artifact: Artifact, choice: EngineChoice, prepared: PreparedScan):
    point = PointExtractor.from_artifact(artifact, choice, TINY_PARAMETERS)
    clock = StageClock()
    groups = point.groups(prepared.points, clock)
    assert groups.features.shape == (NUM_GROUPS, POINT_DIM)
    assert point_channels(artifact) == POINT_DIM
    assert groups.features.dtype == np.float32
    assert len(groups.weights.indices) == len(prepared.points)
    assert list(clock.stage_ms) == [
        "sampling",
        "grouping",
        "point_embedding",
        "point_features",
        "interpolation",
    ]


def test_the_weights_are_those_of_the_groups_centres(
    artifact: Artifact, choice: EngineChoice, prepared: PreparedScan
):
    """They interpolate as the op does with the same centres: the graph, the only one that is
    opened, sees them."""
    names, seen = [], {}

    class Seen:
        def __init__(self, engine: Engine) -> None:
            self.input_shapes, self.output_shapes = engine.input_shapes, engine.output_shapes
            self._engine = engine

        def run(self, inputs):
            seen.update(inputs)
            return self._engine.run(inputs)

    def see(name: str, engine: Engine) -> Engine:
        names.append(name)
        return Seen(engine)

    choice = replace(choice, wrap=see)
    point = PointExtractor.from_artifact(artifact, choice, TINY_PARAMETERS)
    groups = point.groups(prepared.points, StageClock())
    assert names == [GRAPH]
    expected = inverse_distance_interpolation(groups.features, seen["centers"][0], prepared.points)
    mixed = groups.features[groups.weights.indices] * groups.weights.weights[..., None]
    np.testing.assert_allclose(mixed.sum(axis=1), expected, rtol=1e-5, atol=1e-6)


def test_a_graph_that_does_not_fit_the_manifest(artifact: Artifact, choice: EngineChoice):
    words = r"'tokens': \(1, 24, 384\).*need {'tokens': \(1, 25, 384\)"
    with pytest.raises(ArtifactError, match=words):
        PointExtractor.from_artifact(artifact, choice, replace(TINY_PARAMETERS, num_groups=25))


def test_too_few_points(artifact: Artifact, choice: EngineChoice, prepared: PreparedScan):
    few = replace(prepared, points=prepared.points[:15], pixel_indices=prepared.pixel_indices[:15])
    with pytest.raises(EmptyScanError, match="15 foreground points .* needs at least 16"):
        require_points(few, TINY_PARAMETERS.group_size)
    detector = CfmPipeline.from_artifact(artifact, choice)
    with pytest.raises(EmptyScanError, match="15 foreground points .* needs at least 16"):
        detector.score(few, StageClock())


def test_it_is_built_without_the_weights_of_other_branches(make_task: Callable[..., FitTask]):
    task = make_task([], rgb_weights="missing.pth")
    part = build_point_groups(task)
    assert {name: path.name for name, path in part.graphs.items()} == {"points": "points.onnx"}
    assert all(path.parent == task.scratch for path in part.graphs.values())
    assert part.source["kind"] == "random"
    assert part.tensors
    assert all(name.startswith(EMBEDDER_PREFIX) for name in part.tensors)
    with pytest.raises(WeightsError, match="missing.pth"):
        build_point_groups(make_task([], point_weights="missing.pth"))


def test_blocks_that_the_network_has_not_are_refused(make_task: Callable[..., FitTask]):
    with pytest.raises(InvalidInputError, match="12"):
        build_point_groups(make_task([], point_layers=(3, 12)))


def test_calibrated_statistics_are_kept_for_the_reference(
    make_task: Callable[..., FitTask],
    make_dome: Callable[..., Scan],
    make_prepared_dome: Callable[..., PreparedScan],
):
    dome = make_dome(0)
    empty = replace(dome, xyz=np.zeros_like(dome.xyz))
    part = build_point_groups(make_task([empty, dome], batch_norm="calibrated"))
    assert any(name.startswith(POINT_STATISTICS_PREFIX) for name in part.tensors)
    prepared = make_prepared_dome(1, rgb_size=56, grid_size=56)
    assert part.extractor.groups(prepared.points, StageClock()).features.shape == (32, 384)
    for scans in ([], [empty]):
        with pytest.raises(EmptyScanError, match="none of the training scans used for calib"):
            build_point_groups(make_task(scans, batch_norm="calibrated"))
