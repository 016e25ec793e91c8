"""The features that all methods begin with, from an artifact's graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import NUM_GROUPS, POINT_DIM, RGB_DIM, TINY_PARAMETERS, TOKEN_GRID, make_arrays

from mmad_fast.artifact import Artifact, read_artifact
from mmad_fast.detector import load
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice, choose_engine
from mmad_fast.errors import ArtifactError, EmptyScanError
from mmad_fast.methods.feature_extraction import (
    POINT_GRAPH,
    RGB_GRAPH,
    PointExtractor,
    RgbExtractor,
)
from mmad_fast.ops.inverse_distance_interpolation import inverse_distance_interpolation
from mmad_fast.scan import PreparedScan, Scan
from mmad_fast.stage_clock import StageClock


@pytest.fixture
def artifact(tiny_artifact: Path) -> Artifact:
    return read_artifact(tiny_artifact)


@pytest.fixture
def prepared(tiny_artifact: Path) -> PreparedScan:
    return load(tiny_artifact).prepare(Scan.from_arrays(*make_arrays()))


def chosen(artifact: Artifact) -> EngineChoice:
    return choose_engine(artifact.engine_files(), engine="onnxruntime")


def extractors(artifact: Artifact, **changes: int) -> tuple[RgbExtractor, PointExtractor]:
    parameters = replace(TINY_PARAMETERS, **changes)
    rgb, point = (
        family.from_artifact(
            artifact, engine=chosen(artifact), num_threads=1, parameters=parameters
        )
        for family in (RgbExtractor, PointExtractor)
    )
    return rgb, point


def test_tokens_and_groups_of_a_scan(artifact: Artifact, prepared: PreparedScan):
    rgb, point = extractors(artifact)
    clock = StageClock()
    tokens, groups = rgb.tokens(prepared, clock), point.groups(prepared, clock)
    assert tokens.shape == (TOKEN_GRID**2, RGB_DIM)
    assert groups.features.shape == (NUM_GROUPS, POINT_DIM)
    assert tokens.dtype == groups.features.dtype == np.float32
    assert len(groups.weights.indices) == len(prepared.points)
    assert list(clock.stage_ms) == [
        "rgb_tokens",
        "sampling",
        "grouping",
        "point_embedding",
        "point_features",
        "interpolation",
    ]


def test_the_weights_are_those_of_the_groups_centres(artifact: Artifact, prepared: PreparedScan):
    """They interpolate as the op does with the same centres: the graph sees them."""
    seen = {}

    class Seen:
        def __init__(self, engine: Engine) -> None:
            self.input_shapes, self.output_shapes = engine.input_shapes, engine.output_shapes
            self._engine = engine

        def run(self, inputs):
            seen.update(inputs)
            return self._engine.run(inputs)

    _, point = extractors(artifact)
    names = []
    wrapped = point.with_engines(lambda name, engine: names.append(name) or Seen(engine))
    groups = wrapped.groups(prepared, StageClock())
    assert names == [POINT_GRAPH]
    expected = inverse_distance_interpolation(groups.features, seen["centers"][0], prepared.points)
    mixed = groups.features[groups.weights.indices] * groups.weights.weights[..., None]
    np.testing.assert_allclose(mixed.sum(axis=1), expected, rtol=1e-5, atol=1e-6)


def test_only_the_own_graph_is_wrapped(artifact: Artifact):
    rgb, _ = extractors(artifact)
    names = []
    rgb.with_engines(lambda name, engine: names.append(name) or engine)
    assert names == [RGB_GRAPH]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rgb_size": 64}, r"'image' has shape \(1, 3, 56, 56\).*need \(1, 3, 64, 64\); fit the"),
        ({"num_groups": 25}, r"'tokens' has shape \(1, 24, 384\).*need \(1, 25, 384\)"),
    ],
)
def test_graphs_that_do_not_fit_the_manifest(artifact: Artifact, changes: dict, words: str):
    with pytest.raises(ArtifactError, match=words):
        extractors(artifact, **changes)


def test_too_few_points(artifact: Artifact, prepared: PreparedScan):
    few = replace(prepared, points=prepared.points[:15], pixel_indices=prepared.pixel_indices[:15])
    _, point = extractors(artifact)
    with pytest.raises(EmptyScanError, match="15 foreground points .* needs at least 16"):
        point.groups(few, StageClock())
