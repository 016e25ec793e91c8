"""The variants without Point-MAE: fitted, against their dense reference, without a surface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmad_fast.artifact import read_artifact
from mmad_fast.detector import Detector, load
from mmad_fast.errors import ArtifactError, EmptyScanError, InvalidInputError
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.cfm.reference import reference_pipeline
from mmad_fast.methods.cfm.token_features import (
    FPFH_CHANNELS,
    cell_rows,
    cells_of,
    rows_of_cells,
    spreading_rows,
)
from mmad_fast.methods.cfm.token_reference import spread_over_pixels
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.fit_run import fit_scans
from mmad_fast.scan import PreparedScan, Scan
from mmad_fast.stage_clock import StageClock

VARIANTS = ("cfm-normals", "cfm-fpfh")
TOLERANCE = 1e-4
"""Of scores and of the map's maximum. Measured: up to 4e-6."""


@pytest.fixture(scope="module")
def domes(make_dome: Callable[..., Scan]) -> list[Scan]:
    return [make_dome(seed) for seed in range(4)]


@pytest.fixture(scope="module", params=VARIANTS)
def detector(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, domes: list[Scan]
) -> Detector:
    asked = FitRequest.of(
        request.param,
        rgb_backbone="dinov2-vits14",
        rgb_layers=1,
        rgb_weights="random",
        recipe="none",
        epochs=3,
    )
    return load(fit_scans(domes[:2], domes[2:3], tmp_path_factory.mktemp("fit") / "dome", asked))


def test_it_runs_one_graph_and_repeats_its_golden_scan(detector: Detector) -> None:
    manifest = detector.artifact.manifest
    assert set(manifest.graphs) == {"rgb"}
    assert set(detector.weight_sources) == {"rgb"}
    assert manifest.parameters["geometry"] == detector.method.removeprefix("cfm-")
    assert detector.is_exact
    assert detector.replay_golden().agrees
    assert detector.threshold is not None


def test_it_equals_its_dense_reference(detector: Detector, domes: list[Scan]) -> None:
    run_reference = reference_pipeline(detector.artifact, {"rgb": "random"})
    slow = run_reference(detector.prepare(domes[3]), StageClock(), ties="lowest")
    fast = detector.infer_scan(domes[3])
    assert slow.image_score > 0.01
    assert fast.image_score == pytest.approx(slow.image_score, rel=TOLERANCE)
    np.testing.assert_allclose(
        fast.anomaly_map, slow.anomaly_map, rtol=0, atol=TOLERANCE * slow.image_score
    )


def test_the_widths_of_the_networks_are_those_of_the_tokens(detector: Detector) -> None:
    width = {"cfm-normals": 384, "cfm-fpfh": FPFH_CHANNELS}[detector.method]
    tensors = detector.artifact.tensors()
    assert tensors["rgb_to_point.output.weight"].shape[0] == width
    assert tensors["point_to_rgb.input.weight"].shape[1] == width


def prepared_points(detector: Detector, scan: Scan, count: int) -> PreparedScan:
    """The prepared scan with so many of its points."""
    whole = detector.prepare(scan)
    pixels = whole.pixel_indices[:: len(whole.pixel_indices) // count][:count]
    xyz = np.zeros_like(whole.xyz)
    xyz.reshape(-1, 3)[pixels] = whole.xyz.reshape(-1, 3)[pixels]
    return replace(whole, xyz=xyz, points=xyz.reshape(-1, 3)[pixels], pixel_indices=pixels)


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_than_three_points_are_no_surface(
    detector: Detector, domes: list[Scan], count: int
) -> None:
    prepared = prepared_points(detector, domes[0], max(count, 1))
    if count == 0:
        nothing = np.zeros_like(prepared.xyz)
        prepared = replace(
            prepared, xyz=nothing, points=prepared.points[:0], pixel_indices=np.zeros(0, np.int64)
        )
    with pytest.raises(EmptyScanError, match=f"has {count} foreground points .* at least 3"):
        detector.infer_prepared(prepared, StageClock())


@pytest.mark.parametrize("count", [3, 40])
def test_few_scattered_points_give_a_map(detector: Detector, domes: list[Scan], count: int) -> None:
    """Fewer than FPFH asks for, and no two of them neighbours on the grid."""
    result = detector.infer_prepared(prepared_points(detector, domes[0], count), StageClock())
    assert np.isfinite(result.anomaly_map).all()
    assert result.image_score > 0


@pytest.mark.parametrize("what", ["flat", "one colour", "one place"])
def test_a_scan_without_relief_or_texture_gives_a_map(
    detector: Detector, domes: list[Scan], what: str
) -> None:
    scan = domes[0]
    rgb, xyz = scan.rgb.copy(), scan.xyz.copy()
    is_point = xyz[..., 2] != 0
    if what == "flat":
        xyz[is_point, 2] = 0.5
    elif what == "one colour":
        rgb[:] = 128
    else:
        xyz[is_point] = (0.01, 0.02, 0.5)
    prepared = detector.prepare(replace(scan, rgb=rgb, xyz=xyz))
    result = detector.infer_prepared(prepared, StageClock())
    assert np.isfinite(result.anomaly_map).all()
    assert result.image_score > 0


@pytest.mark.parametrize(
    ("method", "option", "words"),
    [
        ("cfm-normals", {"pixel_stride": 2}, "discrepancy is one of tokens"),
        ("cfm-fpfh", {"pixel_stride": 2}, "discrepancy is one of tokens"),
        ("cfm-fpfh", {"fpfh_orientation": "camera"}, "see normals_sigma"),
        ("cfm-fpfh", {"group_size": 32}, "uses no point features"),
        ("cfm-normals", {"point_layers": "1"}, "uses no point features"),
        ("cfm-normals", {"point_weights": "file.pth"}, "uses no point features"),
        ("cfm-normals", {"fpfh_neighbors": 50}, "uses no fpfh features"),
        ("cfm-s", {"fpfh_neighbors": 50}, "uses no fpfh features"),
        ("cfm-s", {"normals_sigma": 1}, "uses no normals features"),
        ("cfm-normals", {"geometry": "fpfh"}, "has no option 'geometry'"),
        ("cfm-normals", {"normals_weights": "random"}, "has no option 'normals_weights'"),
        ("cfm-normals", {"normals_sigma": -1}, "must be at least 0"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    method: str, option: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        FitRequest.of(method, **option)


@pytest.mark.parametrize("method", VARIANTS)
def test_the_fast_bundle_compares_every_token(method: str) -> None:
    options = resolve_options(FitRequest.of(method, speed="fast"))
    assert (options.precision, options.pixel_stride, options.is_exact) == ("int8", 1, False)


def test_a_manifest_of_before_the_variants_is_one_of_point_groups() -> None:
    old = CfmOptions(rgb_layers=4).to_manifest()
    assert "geometry" not in old
    assert "fpfh_radius" not in old
    assert CfmOptions.from_manifest(old) == CfmOptions(rgb_layers=4)
    variant = CfmOptions(geometry="fpfh", fpfh_neighbors=50)
    assert CfmOptions.from_manifest(variant.to_manifest()) == variant
    damaged = variant.to_manifest()
    del damaged["fpfh_neighbors"]
    with pytest.raises(ArtifactError, match="lack fpfh_neighbors"):
        CfmOptions.from_manifest(damaged)


def test_networks_of_another_width_are_refused(detector: Detector, tmp_path: Path) -> None:
    artifact = read_artifact(detector.artifact.path)
    other = {"normals": "fpfh", "fpfh": "normals"}[artifact.manifest.parameters["geometry"]]
    parameters = {**artifact.manifest.parameters, "geometry": other}
    artifact = replace(artifact, manifest=replace(artifact.manifest, parameters=parameters))
    choice = detector.engine_choice
    with pytest.raises(ArtifactError, match="maps .* channels, the features have"):
        type(detector._pipeline).from_artifact(artifact, choice)


@pytest.mark.parametrize(("grid_size", "token_grid"), [(56, 7), (50, 7), (7, 7), (5, 8), (9, 1)])
def test_discrepancies_are_spread_as_torch_interpolates(grid_size: int, token_grid: int) -> None:
    rng = np.random.default_rng(grid_size)
    is_point = rng.random(grid_size**2) < 0.3
    is_point[0] = True
    pixels = np.flatnonzero(is_point)
    cells = cells_of(pixels, grid_size, token_grid)
    foreground = np.unique(cells)
    rows = spreading_rows(pixels, foreground, token_grid=token_grid, grid_size=grid_size)
    ones = np.ones((len(foreground), 1), np.float32)
    np.testing.assert_allclose(rows.apply(ones), 1, rtol=1e-6)
    values = rng.random(len(foreground)).astype(np.float32)
    psi = torch.zeros(token_grid**2)
    psi[foreground] = torch.from_numpy(values)
    mask = torch.zeros(token_grid**2, dtype=torch.bool)
    mask[foreground] = True
    xyz = np.zeros((grid_size, grid_size, 3), np.float32)
    scan = PreparedScan(xyz, xyz, xyz[0], pixels, (1, 1), (0, 0, 0, 0))
    wanted = spread_over_pixels(psi, mask, scan).flatten()
    np.testing.assert_allclose(
        rows.apply(values[:, None])[:, 0], wanted[pixels].numpy(), rtol=0, atol=2e-6
    )
    assert not wanted[torch.from_numpy(~is_point)].any()


def test_cells_pool_and_choose() -> None:
    pixels = np.array([0, 1, 8, 9, 63])  # of 8 x 8: four in the first cell, one in the last
    cells = cells_of(pixels, 8, 4)
    assert cells.tolist() == [0, 0, 0, 0, 15]
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    pooled = cell_rows(cells, 16).apply(values)
    grid = torch.zeros(1, 2, 64)
    grid[..., pixels] = torch.from_numpy(values).T
    mean = F.avg_pool2d(grid.view(1, 2, 8, 8), 2)[0].flatten(1).T.numpy()
    np.testing.assert_allclose(pooled[0], mean[0])
    np.testing.assert_allclose(pooled[15], values[4])
    assert not pooled[1:15].any()
    chosen = rows_of_cells(np.array([3, 5]), 16).apply(np.arange(16, dtype=np.float32)[:, None])
    assert chosen[:, 0].tolist() == [3, 5]
