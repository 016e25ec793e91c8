"""Patch tokens of a vision transformer: what the options stand for, its graph, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from conftest import RGB_DIM, TINY_PARAMETERS, TOKEN_GRID

from mmad_fast.artifact import Artifact
from mmad_fast.backbones.table import RGB_BACKBONES
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import ArtifactError, InvalidInputError, WeightsError
from mmad_fast.methods.branches.vit_tokens import BRANCH
from mmad_fast.methods.branches.vit_tokens.extractor import GRAPH, RgbExtractor, tokens_shape
from mmad_fast.methods.branches.vit_tokens.graph import build_vit_tokens
from mmad_fast.methods.branches.vit_tokens.network import build_network
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.methods.fit_request import FitTask
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


@pytest.mark.parametrize("name", RGB_BACKBONES)
def test_the_options_constants_are_those_of_the_network(name: str):
    options = VitTokenOptions(rgb_backbone=name, rgb_layers=1).with_constants()
    network = build_network(options, weights="random", seed=0)
    assert (network.name, network.image_size, network.token_grid, network.num_layers) == (
        options.rgb_backbone,
        options.rgb_size,
        options.token_grid,
        options.rgb_layers,
    )
    assert BRANCH.checkpoint(options) == name


def test_tokens_of_a_scan(artifact: Artifact, choice: EngineChoice, prepared: PreparedScan):
    rgb = RgbExtractor.from_artifact(artifact, choice, TINY_PARAMETERS)
    clock = StageClock()
    tokens = rgb.tokens(prepared.rgb[None], clock)
    assert tokens.shape == (TOKEN_GRID**2, RGB_DIM)
    assert (1, *tokens.shape) == tokens_shape(artifact)
    assert tokens.dtype == np.float32
    assert list(clock.stage_ms) == ["rgb_tokens"]


def test_only_the_own_graph_is_opened(artifact: Artifact, choice: EngineChoice):
    names = []

    def keep(name: str, engine: Engine) -> Engine:
        names.append(name)
        return engine

    RgbExtractor.from_artifact(artifact, replace(choice, wrap=keep), TINY_PARAMETERS)
    assert names == [GRAPH]


def test_a_graph_that_does_not_fit_the_manifest(artifact: Artifact, choice: EngineChoice):
    words = r"inputs {'image': \(1, 3, 56, 56\)}.*need {'image': \(1, 3, 64, 64\)}; fit the"
    with pytest.raises(ArtifactError, match=words):
        RgbExtractor.from_artifact(artifact, choice, replace(TINY_PARAMETERS, rgb_size=64))


def test_it_is_built_without_the_weights_of_other_branches(make_task: Callable[..., FitTask]):
    task = make_task([], point_weights="missing.pth")
    part = build_vit_tokens(task)
    assert {name: path.name for name, path in part.graphs.items()} == {"rgb": "rgb.onnx"}
    assert all(path.parent == task.scratch for path in part.graphs.values())
    assert part.source["kind"] == "random"
    assert part.tensors == {}
    image = np.zeros((3, 392, 392), np.float32)
    prepared = PreparedScan(
        image, image.T, image.reshape(-1, 3), np.empty(0, np.int64), (392, 392), (0, 0, 0, 0), ""
    )
    assert part.extractor.tokens(prepared.rgb[None], StageClock()).shape == (28**2, 384)
    with pytest.raises(WeightsError, match="missing.pth"):
        build_vit_tokens(make_task([], rgb_weights="missing.pth"))


def test_more_blocks_than_the_network_has_are_refused(make_task: Callable[..., FitTask]):
    with pytest.raises(InvalidInputError, match="13"):
        build_vit_tokens(make_task([], rgb_layers=13))
