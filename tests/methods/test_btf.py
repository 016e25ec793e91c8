"""BTF against the published pipeline, and what becomes of scans that its histograms cannot take."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FIT_HALF
from numpy.typing import NDArray

from mmad_fast.artifact import read_artifact, write_artifact
from mmad_fast.detector import Detector, load
from mmad_fast.errors import (
    ArtifactError,
    EmptyScanError,
    InvalidInputError,
    MissingDependencyError,
    MmadFastError,
)
from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.fpfh import reference as fpfh_reference
from mmad_fast.methods.branches.fpfh.options import FpfhOptions
from mmad_fast.methods.btf import fit as fit_module
from mmad_fast.methods.btf import reference
from mmad_fast.methods.btf.options import BtfOptions
from mmad_fast.methods.btf.patches import (
    PATCH_GRID,
    pool_maps,
    pool_points,
    pooling_shares,
    reached_patches,
)
from mmad_fast.methods.fit_request import FitRequest, FitTask, resolve_options
from mmad_fast.methods.fit_run import fit_scans
from mmad_fast.preprocess.reference import import_open3d
from mmad_fast.scan import PreparedScan, Scan
from mmad_fast.stage_clock import StageClock
from mmad_fast.threshold import OWN_LEFT_OUT

WEIGHTS = {"rgb": "random"}
SMALL_NETWORK = {"rgb_outputs": (1, 2)}
"""Of the options: without the layers that hold nine tenths of the weights."""

TOLERANCE = 1e-4
"""Of the score, and of the map's maximum; beside the step of maps in 8 bits."""


def request_of(method: str, **changes: Any) -> FitRequest:
    options = {} if method == "btf-fpfh" else SMALL_NETWORK
    return FitRequest(method=method, weights=WEIGHTS, recipe="none", options={**options, **changes})


@pytest.fixture(scope="module")
def domes(make_dome: Callable[..., Scan]) -> list[Scan]:
    """Scans of about 3,500 points, at the size that they are prepared to."""
    return [make_dome(seed, size=224, radius=0.15) for seed in range(4)]


@pytest.fixture(scope="module", autouse=True)
def _shared_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The fits share one export of the network, which takes longer than the rest."""
    made: list[BranchPart[Any]] = []
    build = fit_module.build_cnn_pyramid

    def build_once(task: FitTask) -> BranchPart[Any]:
        if not made:
            made.append(build(replace(task, scratch=tmp_path_factory.mktemp("network"))))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "build_cnn_pyramid", build_once)
        network = cache(partial(reference.build_network, weights="random", seed=0))
        patch.setattr(reference, "build_network", lambda options, **_: network(options))
        yield


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, domes: list[Scan]) -> Callable[..., Detector]:
    """A function of a method and options: the detector, fitted once."""
    made: dict[str, Detector] = {}

    def fit(method: str, **changes: Any) -> Detector:
        key = f"{method} {sorted(changes.items())}"
        if key not in made:
            path = tmp_path_factory.mktemp("fit") / "artifact"
            made[key] = load(fit_scans(domes[:2], (), path, request_of(method, **changes)))
        return made[key]

    return fit


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("btf", {}),
        ("btf", {"blur": "float"}),
        ("btf", {"blur": "float", "bank_dtype": "float64"}),
        ("btf-rgb", {"blur": "float", "bank_dtype": "float16", "coreset_fraction": 0.03}),
        ("btf-fpfh", {}),
        ("btf-fpfh", {"blur": "float"}),
        ("btf-fpfh", {"blur": "float", "bank_dtype": "float64"}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value.values())),
)
def test_a_detector_gives_the_published_pipelines_answer(
    method: str, changes: dict[str, Any], fitted: Callable[..., Detector], domes: list[Scan]
) -> None:
    detector = fitted(method, **changes)
    prepared, clock = detector.prepare(domes[3]), StageClock()
    run = reference.reference_pipeline(detector.artifact, WEIGHTS)
    expected, got = run(prepared, StageClock()), detector.infer_prepared(prepared)
    assert detector.is_exact == (changes.get("bank_dtype") != "float16")
    assert got.image_score == pytest.approx(expected.image_score, rel=TOLERANCE)
    largest = float(expected.anomaly_map.max())
    allowed = (TOLERANCE + detector.options.map_step) * largest
    np.testing.assert_allclose(got.anomaly_map, expected.anomaly_map, rtol=0, atol=allowed)
    assert got.image_score > 0
    detector._pipeline.score(prepared, clock)
    parts = {"btf": {"rgb_maps", "fpfh"}, "btf-rgb": {"rgb_maps"}, "btf-fpfh": {"fpfh"}}[method]
    assert set(clock.stage_ms) == {*parts, "pooling", "bank", "reweighting", "maps"}


def test_normals_towards_the_camera_are_the_references_too(
    fitted: Callable[..., Detector], domes: list[Scan]
) -> None:
    published = fitted("btf-fpfh", blur="float")
    turned = fitted("btf-fpfh", blur="float", fpfh_orientation="camera")
    prepared = turned.prepare(domes[3])
    run = reference.reference_pipeline(turned.artifact, {})
    expected, got = run(prepared, StageClock()), turned.infer_prepared(prepared)
    assert got.image_score == pytest.approx(expected.image_score, rel=TOLERANCE)
    other = published.infer_prepared(prepared).image_score
    assert abs(other - got.image_score) > 10 * TOLERANCE * got.image_score


@pytest.mark.parametrize("method", ["btf", "btf-fpfh"])
def test_the_bank_is_that_of_the_dense_matrix(
    method: str, fitted: Callable[..., Detector], domes: list[Scan]
) -> None:
    """Histograms are narrower than the projection would be, and are compared as they are."""
    detector = fitted(method, blur="float")
    network = None
    if method == "btf":
        network = reference.build_network(detector.options, weights="random", seed=0)
    patches = [
        reference.reference_patches(detector.prepare(scan), network, detector.options).float()
        for scan in domes[:2]
    ]
    expected = reference.reference_bank(patches).numpy()
    found = detector.artifact.tensors()["bank.patches"]
    if method == "btf-fpfh":
        assert (found[0] == 0).all()  # the corner's, once
    assert found.shape == expected.shape == (156, expected.shape[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_without_validation_a_training_scan_is_scored_by_the_others_rows(
    fitted: Callable[..., Detector], domes: list[Scan], tmp_path: Path, caplog
) -> None:
    threshold = fitted("btf-fpfh", blur="float").artifact.manifest.threshold
    assert threshold is not None
    assert (threshold.source, threshold.num_scans) == (OWN_LEFT_OUT, 2)
    assert threshold.value > 0
    with caplog.at_level(logging.WARNING, "mmad_fast"):
        alone = load(fit_scans(domes[:1], (), tmp_path / "alone", request_of("btf-fpfh")))
    assert alone.threshold is None
    assert "too few training scans for a threshold (1)" in caplog.text


def test_runs_without_the_fit_half(fitted: Callable[..., Detector]) -> None:
    detector = fitted("btf")
    code = (
        f"import sys\nsys.modules |= dict.fromkeys({FIT_HALF!r})\n"
        f"import mmad_fast\ndetector = mmad_fast.load({str(detector.artifact.path)!r})\n"
        "golden = detector.artifact.golden()\n"
        "score = detector.infer(golden.rgb, golden.xyz).image_score\n"
        "assert abs(score - golden.expected_score) <= 1e-4 * score, score\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def dense_pool(feature_map: NDArray, output: int = PATCH_GRID) -> NDArray:
    averaged = F.avg_pool2d(torch.from_numpy(feature_map)[None].double(), 3, 1)
    return F.adaptive_avg_pool2d(averaged, (output, output))[0].numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_maps_are_pooled_as_published(dtype: str) -> None:
    rng = np.random.default_rng(0)
    maps = [rng.normal(0, 1, shape).astype(np.float32) for shape in ((5, 28, 28), (3, 14, 20))]
    expected = np.concatenate([dense_pool(one).reshape(-1, PATCH_GRID**2) for one in maps]).T
    got = pool_maps(maps, dtype=dtype)
    assert (got.dtype, got.shape, got.flags.c_contiguous) == (dtype, (784, 8), True)
    np.testing.assert_allclose(got, expected, atol=1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("size", [224, 56, 31])
@pytest.mark.parametrize("share", [0.0002, 0.02, 1.0])
def test_points_are_pooled_as_published(size: int, share: float) -> None:
    rng = np.random.default_rng(size)
    pixels = np.flatnonzero(rng.random(size**2) <= share)
    pixels = pixels if len(pixels) else np.array([size + 3])
    descriptors = rng.uniform(1, 100, (len(pixels), 4)).astype(np.float32)
    grid = np.zeros((4, size**2), np.float32)
    grid[:, pixels] = descriptors.T
    expected = dense_pool(grid.reshape(4, size, size))
    got = pool_points(descriptors, pixels, size, dtype="float64")
    np.testing.assert_allclose(got.T, expected.reshape(4, -1), atol=1e-12)
    reached = reached_patches(pixels, size)
    np.testing.assert_array_equal(reached, expected[0] > 0)
    np.testing.assert_allclose(pooling_shares(size).sum(axis=1), 1)


def bad_scan(xyz: NDArray, rgb: NDArray | None = None) -> Scan:
    gray = np.full((*xyz.shape[:2], 3), 128, np.uint8)
    return Scan.from_arrays(gray if rgb is None else rgb, xyz.astype(np.float32))


def grid_of(size: int = 64) -> tuple[NDArray, NDArray]:
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float64)
    return 1e-3 * (rows + 1), 1e-3 * (columns + 1)


def flat() -> Scan:
    y, x = grid_of()
    return bad_scan(np.stack([x, y, np.full_like(x, 0.5)], axis=-1))


def line() -> Scan:
    y, x = grid_of()
    xyz = np.stack([x, y, np.full_like(x, 0.5)], axis=-1)
    xyz[np.arange(64) != 30] = 0
    return bad_scan(xyz)


def without_measurements() -> Scan:
    y, x = grid_of()
    xyz = np.stack([x, y, 0.5 + 0.01 * np.sin(60 * x)], axis=-1)
    xyz[::3, ::2] = np.nan
    return bad_scan(xyz)


def few(number: int) -> Scan:
    y, x = grid_of()
    xyz = np.stack([x, y, 0.5 + 0.01 * np.sin(60 * x)], axis=-1).reshape(-1, 3)
    kept = np.linspace(0, len(xyz) - 1, number).astype(int)
    xyz[np.setdiff1d(np.arange(len(xyz)), kept)] = 0
    return bad_scan(xyz.reshape(64, 64, 3))


def raw_prepare(detector: Detector, scan: Scan) -> PreparedScan:
    """The scan at its own size, without the refusal of scans of few pixels."""
    is_point = (scan.xyz != 0).all(axis=-1).ravel()
    size = detector.options.rgb_size
    xyz = np.zeros((224, 224, 3), np.float32)
    xyz[: scan.xyz.shape[0], : scan.xyz.shape[1]] = scan.xyz
    is_point = (xyz != 0).all(axis=-1).ravel()
    return PreparedScan(
        rgb=np.zeros((3, size, size), np.float32),
        xyz=xyz,
        points=xyz.reshape(-1, 3)[is_point],
        pixel_indices=np.flatnonzero(is_point).astype(np.int64),
        native_size=(224, 224),
        padding=(0, 0, 0, 0),
    )


@pytest.mark.parametrize(
    "scan",
    [flat(), line(), without_measurements(), few(3), few(60)],
    ids=["flat", "line", "missing", "3 points", "60 points"],
)
def test_degenerate_scans_get_the_published_answer(
    scan: Scan, fitted: Callable[..., Detector]
) -> None:
    """Textureless all of them: flat, on a line, with holes, of fewer points than the neighbours of
    a histogram. Normals are turned to the camera: of a flat surface their signs would be those of
    rounding errors."""
    detector = fitted("btf-fpfh", blur="float", fpfh_orientation="camera")
    prepared = raw_prepare(detector, scan)
    expected = reference.reference_pipeline(detector.artifact, {})(prepared, StageClock())
    got = detector.infer_prepared(prepared)
    assert got.image_score == pytest.approx(expected.image_score, rel=TOLERANCE)
    allowed = TOLERANCE * float(expected.anomaly_map.max())
    np.testing.assert_allclose(got.anomaly_map, expected.anomaly_map, rtol=0, atol=allowed)


@pytest.mark.parametrize("scan", [flat(), few(20)], ids=["flat", "20 points"])
def test_scans_that_rounding_decides_get_the_same_answer_each_time(
    scan: Scan, fitted: Callable[..., Detector]
) -> None:
    """Of flat surfaces and of fewer points than a normal has neighbours all normals are the same
    but for their signs or last digits, which say to which bin a pair belongs."""
    detector = fitted("btf-fpfh", blur="float")
    prepared = raw_prepare(detector, scan)
    first, second = (detector.infer_prepared(prepared) for _ in range(2))
    assert 0 < first.image_score == second.image_score
    np.testing.assert_array_equal(first.anomaly_map, second.anomaly_map)
    assert first.anomaly_map.min() >= 0


def test_what_is_no_surface_is_refused(fitted: Callable[..., Detector]) -> None:
    for method in ("btf", "btf-fpfh"):
        detector = fitted(method, blur="float")
        with pytest.raises(EmptyScanError, match="2 foreground points.*needs at least 3; check"):
            detector.infer_prepared(raw_prepare(detector, few(2)))
    detector = fitted("btf-fpfh", blur="float")
    run, prepared = (
        reference.reference_pipeline(detector.artifact, {}),
        raw_prepare(detector, few(2)),
    )
    with pytest.raises(EmptyScanError, match="the reference needs at least 3"):
        run(prepared, StageClock())
    rgb_only = fitted("btf-rgb", blur="float")  # reads no points
    assert rgb_only.infer_prepared(raw_prepare(rgb_only, few(2))).image_score > 0


def test_flat_scans_can_be_fitted(tmp_path: Path) -> None:
    request = request_of("btf-fpfh", fpfh_orientation="camera")
    detector = load(fit_scans([flat(), flat()], [flat()], tmp_path / "flat", request))
    result = detector.infer_scan(flat())
    assert np.isfinite(result.image_score)
    assert result.image_score == pytest.approx(detector.threshold, rel=1e-6)


def test_options() -> None:
    own = resolve_options(FitRequest(method="btf"))
    assert own == BtfOptions()
    assert (own.features, own.rgb_outputs, own.rgb_size) == (("rgb", "fpfh"), (2, 3), 224)
    for changes in (
        {"precision": "int8"},
        {"coreset_fraction": 0.02},
        {"bank_dtype": "float16"},
        {"fpfh_neighbors": 50},
    ):
        assert not replace(own, **changes).is_exact
    assert replace(own, bank_dtype="float64", fpfh_orientation="camera").is_exact
    rgb_only = resolve_options(FitRequest(method="btf-rgb"))
    assert replace(rgb_only, fpfh_neighbors=50).is_exact  # it has none
    fast = resolve_options(FitRequest(method="btf-fpfh", speed="fast"))
    assert (fast.precision, fast.fpfh_neighbors) == ("fp32", 50)  # it has no network
    with pytest.raises(InvalidInputError, match="features is .*one or more of rgb, fpfh, in this"):
        BtfOptions(features=("fpfh", "rgb"))
    with pytest.raises(InvalidInputError, match="fpfh_radius is 0.*above 1e-06"):
        FitRequest.of("btf", fpfh_radius=0)
    with pytest.raises(InvalidInputError, match="bank_dtype is 'int8'.*float32, float64, float16"):
        FitRequest.of("btf", bank_dtype="int8")
    with pytest.raises(InvalidInputError, match="btf-rgb uses no fpfh features; leave it out"):
        FitRequest.of("btf-rgb", fpfh_neighbors=50)


def test_a_branch_without_weights_takes_none() -> None:
    with pytest.raises(InvalidInputError, match="no option 'fpfh_weights'; it has: .*rgb_weights"):
        FitRequest.of("btf", fpfh_weights="random")
    with pytest.raises(InvalidInputError, match="weights of a branch 'fpfh'; btf has: rgb"):
        FitRequest(method="btf", weights={"fpfh": "random"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda rows: rows.astype(np.float16), "is float16, the manifest's parameters say float32"),
        (lambda rows: rows[:, :-1].copy(), "its patches have 33 channels; fit the detector again"),
        (lambda rows: rows + np.float32(np.nan), "cannot be searched"),
    ],
)
def test_a_damaged_bank_is_an_error(
    damage: Callable[[NDArray], NDArray],
    words: str,
    fitted: Callable[..., Detector],
    tmp_path: Path,
) -> None:
    artifact = fitted("btf-fpfh").artifact
    manifest = artifact.manifest
    damaged = write_artifact(
        tmp_path / "damaged",
        method=manifest.method,
        family=manifest.family,
        preprocess=manifest.preprocess,
        parameters=manifest.parameters,
        threshold=manifest.threshold,
        weights=manifest.weights,
        graphs={},
        tensors={"bank.patches": damage(artifact.tensors()["bank.patches"])},
        golden=artifact.golden(),
    )
    assert read_artifact(damaged).manifest.graphs == {}
    with pytest.raises(ArtifactError, match=words):
        load(damaged)


def test_features_that_half_precision_cannot_hold_are_an_error(
    domes: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mmad_fast.methods.btf.detector.pool_points",
        lambda *arguments, **options: 1e4 * pool_points(*arguments, **options),
    )
    with pytest.raises(
        MmadFastError, match="patches bank has features up to .*, more than float16"
    ):
        fit_scans(domes[:1], (), tmp_path / "x", request_of("btf-fpfh", bank_dtype="float16"))


def test_neighbours_of_the_reference_are_ordered_by_distance_then_index() -> None:
    points = np.array([[0, 0, 1], [1, 0, 1], [-1, 0, 1], [0, 2, 1], [0, 0, 1]], np.float32)
    indices, squared = fpfh_reference.nearest_points(points, 3)
    np.testing.assert_array_equal(indices[[0, 4]], [[0, 4, 1], [0, 4, 1]])
    np.testing.assert_array_equal(squared[0], [0, 0, 1])
    indices, _ = fpfh_reference.nearest_points(points, 9)
    assert indices.shape == (5, 5)


def test_the_reference_is_open3ds(domes: list[Scan]) -> None:
    """But for points whose bins rounding decides."""
    try:
        import_open3d()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    points = domes[0].xyz[(domes[0].xyz != 0).all(axis=-1)]
    for orientation in ("open3d", "camera"):
        options = FpfhOptions(fpfh_orientation=orientation)
        found = fpfh_reference.reference_descriptors(points, options)
        expected = fpfh_reference.reference_descriptors(points, options, ties="any")
        is_equal = np.abs(found - expected).max(axis=1) <= 1e-4 * found.sum(axis=1)
        assert is_equal.mean() > 0.99
