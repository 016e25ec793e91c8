"""Feature maps of a convolutional network: what the options stand for, its graph, and what runs
it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmad_fast.backbones.table import CNN_BACKBONES
from mmad_fast.engines import Engine, open_graph
from mmad_fast.errors import ArtifactError, EmptyScanError, InvalidInputError, WeightsError
from mmad_fast.methods.branches.branch import HOST
from mmad_fast.methods.branches.cnn_pyramid import BRANCH
from mmad_fast.methods.branches.cnn_pyramid.extractor import GRAPH, CnnPyramidExtractor
from mmad_fast.methods.branches.cnn_pyramid.graph import build_cnn_pyramid
from mmad_fast.methods.branches.cnn_pyramid.network import build_network
from mmad_fast.methods.branches.cnn_pyramid.options import CnnPyramidOptions
from mmad_fast.methods.branches.device_stream import DeviceStream
from mmad_fast.methods.fit_request import FitRequest, FitTask, silent
from mmad_fast.preprocess.recipes import NO_CLEAN_UP
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class SmallOptions(CnnPyramidOptions):
    """At another size of the image than the published one."""

    def with_constants(self) -> SmallOptions:
        return self


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., FitTask]:
    """(options, weights, training scans) -> the task of a fit."""

    def make(
        options: CnnPyramidOptions, weights: str = "random", train: Sequence[Scan] = ()
    ) -> FitTask:
        request = FitRequest.of("cfm-t", rgb_weights=weights)
        return FitTask(request, train, options, NO_CLEAN_UP, tmp_path, silent)

    return make


SIZES = {"wide-resnet50-2-timm": 224, "wide-resnet50-2": 224, "efficientnet-b5": 768}
PUBLISHED = {
    "wide-resnet50-2-timm": ((2, 3), ((512, 28, 28), (1024, 14, 14))),
    "wide-resnet50-2": ((2, 3), ((512, 28, 28), (1024, 14, 14))),
    "efficientnet-b5": ((35,), ((304, 24, 24),)),
}


@pytest.mark.parametrize("name", CNN_BACKBONES)
def test_the_options_constants_are_those_of_the_published_detectors(name: str):
    outputs, shapes = PUBLISHED[name]
    options = CnnPyramidOptions(rgb_backbone=name, rgb_outputs=outputs).with_constants()
    assert options.rgb_size == SIZES[name]
    assert options.map_shapes == shapes
    assert BRANCH.checkpoint(options) == name


@pytest.mark.parametrize(
    ("name", "outputs", "output_names"),
    [
        ("wide-resnet50-2-timm", (2, 1), ("layer2", "layer1")),
        ("efficientnet-b5", (12, 2), ("block12", "block2")),
    ],
)
def test_the_graphs_maps_are_the_networks(
    name: str, outputs: tuple[int, ...], output_names: tuple[str, ...], make_task: Callable
):
    options = SmallOptions(rgb_backbone=name, rgb_outputs=outputs, rgb_size=64)
    part = build_cnn_pyramid(make_task(options))
    assert {key: path.name for key, path in part.graphs.items()} == {"rgb": "rgb.onnx"}
    assert part.source == {"name": name, "kind": "random", "detail": "seed 0", "sha256": None}
    assert part.tensors == {}
    assert options.output_names == output_names
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    clock = StageClock()
    maps = part.extractor.maps(image.numpy(), clock)
    assert list(clock.stage_ms) == ["rgb_maps"]
    assert tuple(one.shape for one in maps) == options.map_shapes
    with torch.inference_mode():
        expected = build_network(options, weights="random", seed=0)(image)
    for found, wanted in zip(maps, expected, strict=True):
        assert found.dtype == np.float32
        scale = float(wanted.abs().max())
        assert np.abs(found - wanted[0].numpy()).max() <= 1e-5 * scale


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rgb_outputs": (0, 2)}, "outputs of wide-resnet50-2-timm are.*layers, 1 to 4"),
        ({"rgb_outputs": (3, 3)}, "different numbers"),
        ({"rgb_backbone": "efficientnet-b5", "rgb_outputs": (39,)}, "blocks, 0 to 38"),
        ({"rgb_size": 40}, "image_size is 40; for layer 3 it must be a positive multiple of 16"),
        (
            {"rgb_backbone": "efficientnet-b5", "precision": "int8"},
            "'int8', in which efficientnet-b5",
        ),
        ({"rgb_backbone": "dino-vitb8"}, "must be one of wide-resnet50-2-timm, wide"),
    ],
)
def test_what_the_network_lacks_is_refused(changed: dict[str, Any], words: str):
    with pytest.raises(InvalidInputError, match=words):
        replace(CnnPyramidOptions(), **changed)


def test_weights_that_are_missing(make_task: Callable):
    with pytest.raises(WeightsError, match="missing.pth"):
        build_cnn_pyramid(make_task(CnnPyramidOptions(), "missing.pth"))


@pytest.fixture(scope="module")
def two_maps(tmp_path_factory: pytest.TempPathFactory) -> tuple[CnnPyramidOptions, Path]:
    """Options, and their graph."""
    options = SmallOptions(rgb_outputs=(2, 1), rgb_size=32)
    request = FitRequest.of("cfm-t", rgb_weights="random")
    scratch = tmp_path_factory.mktemp("maps")
    part = build_cnn_pyramid(FitTask(request, (), options, NO_CLEAN_UP, scratch, silent))
    return options, part.graphs[GRAPH]


def test_int8_is_calibrated_on_training_scans(
    two_maps: tuple[CnnPyramidOptions, Path], make_task: Callable, make_dome: Callable
):
    options, path = two_maps
    domes = [make_dome(seed) for seed in range(2)]
    task = make_task(replace(options, precision="int8"), train=domes)
    part = build_cnn_pyramid(task)
    assert part.graphs[GRAPH].stat().st_size < 0.35 * path.stat().st_size
    image = task.prepare(domes[0]).rgb[None]
    exact = CnnPyramidExtractor(open_graph(path), options).maps(image, StageClock())
    for found, wanted in zip(part.extractor.maps(image, StageClock()), exact, strict=True):
        assert 0 < np.sqrt(np.mean((found - wanted) ** 2)) < 0.05 * wanted.std()


def test_int8_is_no_exact_answer():
    assert CnnPyramidOptions().is_exact
    assert not CnnPyramidOptions(precision="int8").is_exact


def test_int8_without_a_scan_to_calibrate_on(make_task: Callable, make_dome: Callable):
    options = SmallOptions(rgb_outputs=(1,), rgb_size=32, precision="int8")
    dome = make_dome(0)
    for train in ([], [replace(dome, xyz=np.zeros_like(dome.xyz))]):
        with pytest.raises(EmptyScanError, match="none of the training scans used for calibration"):
            build_cnn_pyramid(make_task(options, train=train))


def artifact_with(graph: Engine) -> Any:
    """What the extractor reads of an artifact with this graph."""
    shapes = {"inputs": graph.input_shapes, "outputs": graph.output_shapes}
    return SimpleNamespace(path=Path("artifact"), graph_record=lambda name: shapes)


def test_the_graph_of_an_artifact(two_maps: tuple[CnnPyramidOptions, Path]):
    options, path = two_maps
    graph = open_graph(path)
    names: list[str] = []
    choice: Any = SimpleNamespace(open=lambda name: (names.append(name), graph)[1])
    extractor = CnnPyramidExtractor.from_artifact(artifact_with(graph), choice, options, HOST)
    maps = extractor.maps(np.ones((1, 3, 32, 32), np.float32), StageClock())
    assert names == ["rgb"]
    assert [one.shape for one in maps] == [(512, 4, 4), (256, 8, 8)]
    for changed in ({"rgb_size": 64}, {"rgb_outputs": (1,)}, {"rgb_outputs": (3, 1)}):
        with pytest.raises(ArtifactError, match="the manifest's parameters need"):
            CnnPyramidExtractor.from_artifact(
                artifact_with(graph), choice, replace(options, **changed), HOST
            )


class OnTorch:
    """An engine of a device that writes into arrays it is given, on the host."""

    def __init__(self, graph: Engine) -> None:
        self.output_shapes = graph.output_shapes
        self._graph = graph

    def run_bound(self, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        def at(address: int, shape: Sequence[int]) -> np.ndarray:
            kind = ctypes.c_float * int(np.prod(shape))
            return np.frombuffer(kind.from_address(address), np.float32).reshape(shape)

        image = at(inputs["image"], self._graph.input_shapes["image"])
        for name, array in self._graph.run({"image": image}).items():
            at(outputs[name], array.shape)[:] = array


def test_maps_on_a_device_are_those_of_the_host(two_maps: tuple[CnnPyramidOptions, Path]):
    options, path = two_maps
    graph, image = open_graph(path), np.ones((1, 3, 32, 32), np.float32)
    stream = DeviceStream(torch.device("cpu"), None)
    extractor = CnnPyramidExtractor(OnTorch(graph), options, stream)  # type: ignore[arg-type]
    maps = extractor.maps(torch.from_numpy(image), StageClock())
    expected = CnnPyramidExtractor(graph, options).maps(image, StageClock())
    for found, wanted in zip(maps, expected, strict=True):
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), wanted)
