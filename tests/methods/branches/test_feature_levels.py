"""The teacher's levels: what the options stand for, statistics of a modality, and the graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import load_model

from mmad_fast.engines import open_graph
from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.export.graph_cost import graph_cost
from mmad_fast.methods.branches.feature_levels import BRANCH
from mmad_fast.methods.branches.feature_levels.extractor import FeatureLevelExtractor
from mmad_fast.methods.branches.feature_levels.graph import export_feature_levels
from mmad_fast.methods.branches.feature_levels.network import (
    STATISTICS,
    build_network,
    with_statistics,
)
from mmad_fast.methods.branches.feature_levels.options import FeatureLevelOptions
from mmad_fast.methods.fit_request import FitRequest, FitTask, silent
from mmad_fast.preprocess.recipes import NO_CLEAN_UP
from mmad_fast.stage_clock import StageClock

SIZE = 32


@dataclass(frozen=True)
class SmallOptions(FeatureLevelOptions):
    """At another size of the image than the published one."""

    def with_constants(self) -> SmallOptions:
        return self


@pytest.mark.parametrize(
    ("backbone", "size", "levels", "shapes"),
    [
        ("wide-resnet50-2", 256, (1, 2, 3), ((256, 64, 64), (512, 32, 32), (1024, 16, 16))),
        ("dino-vitb8", 224, (3, 6, 9), ((768, 28, 28),) * 3),
        ("dinov2-vits14", 392, (3, 6, 9), ((384, 28, 28),) * 3),
    ],
)
def test_what_a_backbone_stands_for(
    backbone: str, size: int, levels: tuple[int, ...], shapes: tuple[Any, ...]
) -> None:
    options = FeatureLevelOptions(rgb_backbone=backbone).with_constants()
    assert (options.rgb_size, options.rgb_levels, options.level_shapes) == (size, levels, shapes)
    assert FeatureLevelOptions.from_manifest(options.to_manifest()) == options
    assert BRANCH.checkpoint is not None
    assert BRANCH.checkpoint(options) == backbone
    assert BRANCH.describe(options.to_manifest()) == f"{backbone} {','.join(map(str, levels))}"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rgb_backbone": "efficientnet-b5"}, "must be one of wide-resnet50-2"),
        ({"rgb_levels": (1, 2)}, r"rgb_levels is \(1, 2\); it must be 3 different numbers"),
        ({"rgb_levels": (3, 2, 1)}, "shallow to deep"),
        ({"rgb_levels": (2, 3, 5)}, "layers, 1 to 4"),
        ({"rgb_size": 40}, "for layer 3 it must be a positive multiple of 16"),
        ({"rgb_backbone": "dino-vitb8", "rgb_levels": (6, 12, 13)}, "dino-vitb8 has 12 blocks"),
    ],
)
def test_levels_that_a_backbone_lacks_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        replace(FeatureLevelOptions(), **changed)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return build_network(SmallOptions(rgb_size=SIZE), weights="random", seed=0)


@pytest.fixture(scope="module")
def statistics(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Other ones than the network's."""
    return made_up_statistics(network)


def made_up_statistics(network: torch.nn.Module) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        key: rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
        for key, value in network.state_dict().items()
        if key.endswith(STATISTICS)
    }


def test_a_modality_has_statistics_and_no_weights_of_its_own(
    network: torch.nn.Module, statistics: dict[str, np.ndarray]
) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    other = with_statistics(network, statistics)
    for key, value in other.state_dict().items():
        shared = before[key] if key not in statistics else torch.from_numpy(statistics[key])
        assert torch.equal(value, shared)
        assert torch.equal(network.state_dict()[key], before[key])
    own = dict(network.named_parameters())
    assert all(value is own[key] for key, value in other.named_parameters())
    assert not other.training
    assert with_statistics(network, {}) is network
    damaged = {key: value for key, value in statistics.items() if "layer3" not in key}
    with pytest.raises(ArtifactError, match="statistics are not those of wide-resnet50-2"):
        with_statistics(network, damaged)


@pytest.fixture(scope="module")
def graphs(
    network: torch.nn.Module,
    statistics: dict[str, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Of two modalities."""
    networks = {"rgb": network, "aux": with_statistics(network, statistics)}
    task = make_task(tmp_path_factory.mktemp("levels"))
    part = export_feature_levels(task, networks, {})
    assert part.source == {
        "name": "wide-resnet50-2", "kind": "random", "detail": "seed 0", "sha256": None
    }  # fmt: skip
    return dict(part.graphs)


def make_task(scratch: Path, **chosen: Any) -> FitTask:
    options = SmallOptions(rgb_size=SIZE, **chosen)
    request = FitRequest.of("rd", rgb_weights="random")
    return FitTask(request, (), options, NO_CLEAN_UP, scratch, silent)


def test_each_graph_gives_the_maps_of_its_network(
    network: torch.nn.Module, statistics: dict[str, np.ndarray], graphs: dict[str, Path]
) -> None:
    extractor = FeatureLevelExtractor({name: open_graph(path) for name, path in graphs.items()})
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    clock = StageClock()
    for name, values in {"rgb": {}, "aux": statistics}.items():
        found = extractor.levels(name, image.numpy(), clock)
        with torch.inference_mode():
            expected = with_statistics(network, values)(image)
        assert [one.shape for one in found] == [(1, 256, 8, 8), (1, 512, 4, 4), (1, 1024, 2, 2)]
        for one, wanted in zip(found, expected, strict=True):
            assert np.abs(one - wanted.numpy()).max() <= 1e-5 * float(wanted.abs().max())
    assert list(clock.stage_ms) == ["teacher"]


def test_a_transformers_maps_are_its_tokens_after_each_block(tmp_path: Path) -> None:
    options = SmallOptions(rgb_backbone="dinov2-vits14", rgb_levels=(1, 3, 4), rgb_size=42)
    network = build_network(options, weights="random", seed=0)
    assert network.name == options.rgb_backbone
    image = torch.randn(1, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        levels = network(image)
        tokens = network.transformer.tokens_after(image, (1, 3, 4))
        other = with_statistics(network, made_up_statistics(network))(image)
    assert tuple(tuple(one.shape[1:]) for one in levels) == options.level_shapes
    for level, of_block in zip(levels, tokens, strict=True):
        as_built = of_block[0, 1 * 3 + 2]  # row-major; BatchNorm's epsilon is 1e-5
        torch.testing.assert_close(level[0, :, 1, 2], as_built, rtol=1e-5, atol=0)
    for number, (level, plain) in enumerate(zip(other, levels, strict=True)):
        mean, variance = (
            torch.from_numpy(made_up_statistics(network)[f"statistics.{number}.running_{kind}"])
            for kind in ("mean", "var")
        )
        expected = (plain[0] - mean[:, None, None]) / variance.sqrt()[:, None, None]
        torch.testing.assert_close(level[0], expected, rtol=1e-4, atol=1e-4)
    request = FitRequest.of("rd", rgb_weights="random")
    task = FitTask(request, (), options, NO_CLEAN_UP, tmp_path, silent)
    part = export_feature_levels(task, {"rgb": network}, {})
    cost = graph_cost(load_model(part.graphs["rgb"]))
    assert cost.parameters < 4.2 * 12 * 384**2  # blocks behind the fourth are cut
    for found, wanted in zip(
        part.extractor.levels("rgb", image.numpy(), StageClock()), levels, strict=True
    ):
        assert np.abs(found - wanted.numpy()).max() <= 1e-5 * float(wanted.abs().max())


def test_nothing_behind_the_last_level_is_run(graphs: dict[str, Path]) -> None:
    """12.00 GMAC at 256 pixels (method facts 8.3), a 64th of it at 32; layer 4 would add 2.6."""
    cost = graph_cost(load_model(graphs["rgb"]))
    assert cost.multiply_adds * 64 == pytest.approx(12.00e9, rel=0.005)
    assert cost.parameters == pytest.approx(24.86e6, rel=0.005)


def test_int8_takes_its_ranges_from_the_pictures_of_the_modality(
    network: torch.nn.Module, graphs: dict[str, Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(0, 1, (1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(2)]
    task = make_task(tmp_path, precision="int8")
    part = export_feature_levels(task, {"aux": network}, {"aux": images, "rgb": []})
    assert part.graphs["aux"].stat().st_size < 0.35 * graphs["rgb"].stat().st_size
    exact = FeatureLevelExtractor({"aux": open_graph(graphs["rgb"])})
    for found, wanted in zip(
        part.extractor.levels("aux", images[0], StageClock()),
        exact.levels("aux", images[0], StageClock()),
        strict=True,
    ):
        assert 0 < np.sqrt(np.mean((found - wanted) ** 2)) < 0.1 * wanted.std()


def test_the_graphs_of_an_artifact_are_opened_once_and_checked(graphs: dict[str, Path]) -> None:
    graph = open_graph(graphs["rgb"])
    shapes = {"inputs": graph.input_shapes, "outputs": graph.output_shapes}
    artifact: Any = SimpleNamespace(path=Path("artifact"), graph_record=lambda name: shapes)
    opened: list[str] = []
    choice: Any = SimpleNamespace(open=lambda name: (opened.append(name), graph)[1])
    open_levels: Callable[..., Any] = FeatureLevelExtractor.from_artifact
    options = SmallOptions(rgb_size=SIZE)
    open_levels(artifact, choice, options, ("rgb", "rgb"))
    assert opened == ["rgb"]
    for changed in ({"rgb_size": 64}, {"rgb_levels": (2, 3, 4)}):
        with pytest.raises(ArtifactError, match="the manifest's parameters need"):
            open_levels(artifact, choice, replace(options, **changed), ("rgb",))
