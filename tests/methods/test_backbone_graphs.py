"""The backbones as graphs: what the options stand for, and the modalities that are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmad_fast.backbones import RGB_BACKBONES
from mmad_fast.errors import EmptyScanError, InvalidInputError, WeightsError
from mmad_fast.methods.backbone_graphs import (
    BackboneFitOptions,
    backbone_parameters,
    build_backbone_part,
    build_rgb,
    prepare_scan,
)
from mmad_fast.methods.backbone_parameters import EMBEDDER_PREFIX, POINT_STATISTICS_PREFIX
from mmad_fast.scan import PreparedScan, Scan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class Options(BackboneFitOptions):
    method: str = "cfm-t"
    recipe: str = "none"


SMALL = {
    "rgb_backbone": "dinov2-vits14",
    "rgb_layers": 1,
    "rgb_weights": "random",
    "point_weights": "random",
    "num_groups": 32,
    "group_size": 16,
}


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("name", RGB_BACKBONES)
def test_parameters_are_those_of_the_network(name: str):
    options = Options(rgb_backbone=name, rgb_layers=1, rgb_weights="random")
    parameters = backbone_parameters(options)
    network = build_rgb(options, parameters)
    assert (network.name, network.image_size, network.token_grid, network.num_layers) == (
        parameters.rgb_backbone,
        parameters.rgb_size,
        parameters.token_grid,
        parameters.rgb_layers,
    )


def test_what_is_left_open_is_the_variants_own():
    parameters = backbone_parameters(Options(method="cfm-s"))
    assert (parameters.rgb_backbone, parameters.rgb_layers) == ("dino-vitb8", 4)
    assert parameters.point_layers == (1, 2, 3)


def test_options_out_of_range_are_refused_before_any_weights_are_read():
    missing = {"rgb_weights": "missing.pth", "point_weights": "missing.pth"}
    for change, words in (
        ({"rgb_backbone": "vit"}, "no RGB backbone 'vit'; known are dino-vitb8"),
        ({"batch_norm": "batch"}, "batch_norm is 'batch'; it must be one of cloud"),
        ({"group_size": 0}, "group_size is 0; it must be at least 1"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            backbone_parameters(Options(**missing, **change))
    with pytest.raises(InvalidInputError, match="no preprocessing recipe 'cfm3'; known are"):
        Options(recipe="cfm3")
    with pytest.raises(InvalidInputError, match="threshold_quantile is 1.5; it must be from 0"):
        Options(threshold_quantile=1.5)


@pytest.mark.parametrize(
    ("modality", "other_weights"), [("rgb", "point_weights"), ("point", "rgb_weights")]
)
def test_one_modality_alone_needs_no_weights_of_the_other(
    modality: str, other_weights: str, tmp_path: Path
):
    options = Options(**{**SMALL, other_weights: "missing.pth"})
    told = []
    part = build_backbone_part(
        [], options, tmp_path, modalities=(modality,), progress=lambda *step: told.append(step)
    )
    assert told == [("export", 0, 1), ("export", 1, 1)]
    assert set(part.weights) == {modality, "seed"}
    assert [path.name for path in part.graphs.values()] == [
        "rgb.onnx" if modality == "rgb" else "points.onnx"
    ]
    assert (part.rgb is None, part.point is None) == (modality != "rgb", modality != "point")
    assert all(name.startswith(EMBEDDER_PREFIX) for name in part.tensors)
    assert bool(part.tensors) == (modality == "point")
    with pytest.raises(WeightsError, match="missing.pth"):
        build_backbone_part([], options, tmp_path, progress=silent)


def test_calibrated_statistics_are_kept_for_the_reference(
    tmp_path: Path,
    make_dome: Callable[..., Scan],
    make_prepared_dome: Callable[..., PreparedScan],
):
    options = Options(**SMALL, batch_norm="calibrated")
    part = build_backbone_part(
        [make_dome(0)], options, tmp_path, modalities=("point",), progress=silent
    )
    assert any(name.startswith(POINT_STATISTICS_PREFIX) for name in part.tensors)
    assert part.point is not None
    prepared = make_prepared_dome(1, rgb_size=56, grid_size=56)
    assert part.point.groups(prepared, StageClock()).features.shape == (32, 384)
    with pytest.raises(EmptyScanError, match="none of the training scans used for batch_norm"):
        build_backbone_part([], options, tmp_path, modalities=("point",), progress=silent)


def test_a_scan_is_prepared_for_the_networks_sizes(make_dome: Callable[..., Scan]):
    options = Options(**SMALL)
    prepared = prepare_scan(make_dome(0), options, backbone_parameters(options))
    assert prepared.rgb.shape == (3, 392, 392)
    assert prepared.grid_size == 224
