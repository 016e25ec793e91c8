"""The torch-free M3DM detector against the dense reference, on the same weights and banks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmad_fast.detector import Detector, load
from mmad_fast.engines import open_graph
from mmad_fast.methods.branches.point_groups import network as point_groups
from mmad_fast.methods.branches.point_groups.extractor import PointExtractor
from mmad_fast.methods.branches.point_groups.graph import build_point_groups
from mmad_fast.methods.branches.vit_tokens import network as vit_tokens
from mmad_fast.methods.branches.vit_tokens.extractor import RgbExtractor
from mmad_fast.methods.branches.vit_tokens.graph import build_vit_tokens
from mmad_fast.methods.fit_request import FitRequest, FitTask, silent
from mmad_fast.methods.fit_run import fit_scans
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures, bank_queries
from mmad_fast.methods.m3dm.detector import (
    M3dmPipeline,
    M3dmScores,
    PatchExtractor,
    PatchFusion,
)
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock, export_uff_graphs, save_uff
from mmad_fast.methods.m3dm.options import M3dmOptions, reweighting_constants
from mmad_fast.methods.m3dm.reference import (
    BankScores,
    DensePatches,
    ReferenceNetworks,
    ReferenceOptions,
    ReferenceScores,
    decide,
    reference_infer,
    reference_patches,
    reference_pipeline,
    score_bank,
)
from mmad_fast.methods.m3dm.reference_banks import bank_scales, reference_banks, reference_decision
from mmad_fast.methods.memory_bank.search import normalize_rows
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank, nearest_neighbor_scoring
from mmad_fast.scan import PreparedScan, Scan
from mmad_fast.stage_clock import StageClock

SMALL = FitRequest.of(
    "m3dm",
    recipe="cfm",
    rgb_backbone="dinov2-vits14",
    rgb_layers=1,
    point_layers=(0,),
    rgb_weights="random",
    point_weights="random",
    num_groups=128,
    group_size=32,
)
GRID_SIZE = 112
TOLERANCE = 1e-4
"""Of the score, relative, and of the map, relative to its maximum."""

METHODS: dict[str, dict[str, Any]] = {
    "m3dm-rgb": {"banks": ("rgb",), "decision": "single"},
    "m3dm-3d": {"banks": ("point",), "decision": "single"},
    "m3dm-fusion": {"banks": ("fusion",), "decision": "single"},
    "m3dm-rgb+3d": {"banks": ("point", "rgb"), "decision": "svm"},
    "m3dm-rgb+3d-add": {"banks": ("point", "rgb"), "decision": "sum"},
    "m3dm": {"banks": ("point", "rgb", "fusion"), "decision": "svm"},
}
WEIGHTS = {"point": 0.8, "rgb": 0.07, "fusion": 1.3}


@dataclass(frozen=True)
class Setup:
    """Both halves on the same random weights, without banks."""

    rgb: RgbExtractor
    point: PointExtractor
    options: M3dmOptions
    fusion: PatchFusion
    networks: ReferenceNetworks
    scans: list[PreparedScan]
    dense_patches: dict[tuple, list[DensePatches]] = field(default_factory=dict)
    fast_patches: dict[tuple, PatchFeatures] = field(default_factory=dict)

    @property
    def scan(self) -> PreparedScan:
        """The scan that is scored; the others make the banks."""
        return self.scans[-1]

    def dense(self, parameters: M3dmOptions) -> list[DensePatches]:
        """The reference's patches of all scans, computed once per kind of patch."""
        all_banks = self._all_banks(parameters)
        key = (all_banks.point_patches, all_banks.uses_uff)
        if key not in self.dense_patches:
            networks, options = self.networks_of(all_banks), ReferenceOptions.of(all_banks)
            self.dense_patches[key] = [
                reference_patches(scan, networks, options) for scan in self.scans
            ]
        return self.dense_patches[key]

    def features(self, parameters: M3dmOptions) -> PatchFeatures:
        """The detector's patches of the scored scan, likewise."""
        all_banks = self._all_banks(parameters)
        key = (all_banks.point_patches, all_banks.uses_uff)
        if key not in self.fast_patches:
            extractor = self.extractor(all_banks)
            self.fast_patches[key] = extractor.extract(self.scan, StageClock())
        return self.fast_patches[key]

    def _all_banks(self, parameters: M3dmOptions) -> M3dmOptions:
        method = "m3dm-rgb+3d" if parameters.point_patches == "groups" else "m3dm"
        return self.parameters(
            method, point_patches=parameters.point_patches, uses_uff=parameters.uses_uff
        )

    def parameters(self, method: str, **switches: Any) -> M3dmOptions:
        """Of a method; scalars of the banks are still to come."""
        settings = {**METHODS[method], **switches}
        banks = settings["banks"]
        epsilon, divisor = reweighting_constants(banks, settings.get("reweighting", "code"))
        weights = {name: 1.0 if len(banks) == 1 else WEIGHTS[name] for name in banks}
        return replace(
            self.options,
            grid_size=GRID_SIZE,
            bank_scales={},
            **settings,
            weight_epsilon=epsilon,
            distance_divisor=divisor,
            score_weights=weights,
            map_weights=weights,
        )

    def networks_of(self, parameters: M3dmOptions) -> ReferenceNetworks:
        """The reference's networks that the banks read."""
        return ReferenceNetworks(
            self.networks.rgb if parameters.reads_rgb else None,
            self.networks.point if parameters.reads_points else None,
            self.networks.fusion if parameters.fuses else None,
        )

    def extractor(self, parameters: M3dmOptions) -> PatchExtractor:
        """The fast half of the features, those that the banks read."""
        return PatchExtractor(
            self.rgb if parameters.reads_rgb else None,
            self.point if parameters.reads_points else None,
            parameters,
            self.fusion if parameters.fuses else None,
        )


@pytest.fixture(scope="module")
def setup(
    tmp_path_factory: pytest.TempPathFactory, make_prepared_dome: Callable[..., PreparedScan]
) -> Setup:
    folder = tmp_path_factory.mktemp("graphs")
    task = FitTask.of(SMALL, [], folder, silent)
    options: M3dmOptions = task.options
    fusion = FeatureFusionBlock(384, 384).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in fusion.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    graphs = export_uff_graphs(fusion, folder, num_tokens=options.token_grid**2)
    sizes = {"rgb_size": options.rgb_size, "grid_size": GRID_SIZE, "radius": 0.3}
    backbones = (
        vit_tokens.build_network(options, weights="random", seed=SMALL.seed),
        point_groups.build_network(options, weights="random", seed=SMALL.seed),
    )
    return Setup(
        build_vit_tokens(task).extractor,
        build_point_groups(task).extractor,
        options,
        PatchFusion(open_graph(graphs["uff_point"]), open_graph(graphs["uff_rgb"])),
        ReferenceNetworks(*backbones, fusion),
        [make_prepared_dome(seed, **sizes) for seed in (0, 1, 7)],
    )


@dataclass(frozen=True)
class Compared:
    """A fast detector, and what the reference says with the same banks."""

    parameters: M3dmOptions
    pipeline: M3dmPipeline
    banks: dict[str, NDArray[np.float32]]
    patches: DensePatches
    scores: ReferenceScores


def compare(setup: Setup, method: str, **switches: Any) -> Compared:
    """Banks of every fortieth dense row, and the reference's answer from the dense patches."""
    parameters = setup.parameters(method, **switches)
    *train, patches = setup.dense(parameters)
    dense = {name: torch.cat([scan.banks[name] for scan in train]) for name in parameters.banks}
    # The LayerNorm of random weights leaves a mean of 0, with which nothing is subtracted.
    scales = bank_scales(dense, parameters.bank_norm)
    scales = {name: (mean + 0.3, std) for name, (mean, std) in scales.items()}
    parameters = replace(parameters, bank_scales=scales)
    banks = {
        name: normalize_rows(rows[::40].numpy(), parameters.bank_scales[name]).astype(
            parameters.bank_dtype
        )
        for name, rows in dense.items()
    }
    options = ReferenceOptions.of(parameters)
    by_bank = {
        name: score_bank(name, patches, bank, options, GRID_SIZE)
        for name, bank in as_tensors(banks).items()
    }
    prepared = {name: PreparedBank(bank) for name, bank in banks.items()}
    pipeline = M3dmPipeline(setup.extractor(parameters), prepared, parameters)
    return Compared(parameters, pipeline, banks, patches, decide(by_bank, parameters))


def as_tensors(banks: dict[str, NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(bank.astype(np.float32)) for name, bank in banks.items()}


def assert_equal(fast: M3dmScores, slow: ReferenceScores, parameters: M3dmOptions) -> None:
    """Score and map within the tolerance. With the 8-bit blur a pixel may fall on the other side of
    a step: one of 255 of each bank's largest distance, at a few pixels."""
    assert slow.image_score != 0
    assert fast.image_score == pytest.approx(slow.image_score, rel=TOLERANCE)
    side = parameters.grid_size
    assert fast.anomaly_map.shape == slow.anomaly_map.shape == (side, side)
    largest = np.abs(slow.anomaly_map).max()
    difference = np.abs(fast.anomaly_map - slow.anomaly_map)
    if parameters.blur == "float":
        assert difference.max() < TOLERANCE * largest
        return
    weights, banks = parameters.map_weights, slow.banks
    step = sum(abs(weights[name]) * bank.distances.max() / 255 for name, bank in banks.items())
    assert difference.max() < step + TOLERANCE * largest
    assert np.mean(difference > TOLERANCE * largest) < 0.02


@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, "float32") for method in METHODS), ("m3dm", "float64")],
)
def test_detector_equals_reference(setup: Setup, method: str, dtype: str):
    """Both from the prepared scan to the answer."""
    compared = compare(setup, method, blur="float")
    parameters, options = compared.parameters, ReferenceOptions.of(compared.parameters, dtype=dtype)
    banks, networks = as_tensors(compared.banks), setup.networks_of(parameters)
    fast = compared.pipeline.score(setup.scan, StageClock())
    assert_equal(fast, reference_infer(setup.scan, networks, banks, options), parameters)


SWITCHES: list[tuple[str, dict[str, Any]]] = [
    *((method, {"blur": "pil8bit"}) for method in METHODS),
    ("m3dm", {"uses_uff": False}),
    ("m3dm-fusion", {"uses_uff": False}),
    ("m3dm", {"point_patches": "28x28"}),
    ("m3dm-3d", {"point_patches": "28x28"}),
    ("m3dm-3d", {"point_patches": "groups"}),
    ("m3dm-rgb+3d", {"point_patches": "groups"}),
    ("m3dm", {"bank_norm": "own"}),
    ("m3dm-3d", {"bank_norm": "own"}),
    ("m3dm", {"reweighting": "paper"}),
    ("m3dm-rgb", {"reweighting": "paper"}),
    ("m3dm-rgb+3d", {"reweighting": "paper"}),
    ("m3dm", {"reweighting": "none"}),
    ("m3dm", {"score_offset": 0.3, "map_offset": -0.2}),
    ("m3dm", {"bank_dtype": "float16"}),
]


@pytest.mark.parametrize(
    ("method", "switches"),
    SWITCHES,
    ids=[f"{method}-{'-'.join(map(str, switches.values()))}" for method, switches in SWITCHES],
)
def test_switches_equal_reference(setup: Setup, method: str, switches: dict[str, Any]):
    """From patches that each half extracted by itself."""
    compared = compare(setup, method, **{"blur": "float", **switches})
    features = setup.features(compared.parameters)
    fast = compared.pipeline.score_features(features, StageClock())
    assert_equal(fast, compared.scores, compared.parameters)


def test_nearest_rows_are_those_of_the_reference(setup: Setup):
    """Identical indices, except where two rows are equally near up to rounding."""
    compared = compare(setup, "m3dm")
    features = setup.features(compared.parameters)
    for name, bank in compared.banks.items():
        scale = compared.parameters.bank_scales[name]
        queries, owner = bank_queries(features, compared.parameters, name)
        rows = normalize_rows(queries, scale)
        found = nearest_neighbor_scoring(rows, bank)
        nearest, expected = found.indices[owner], compared.scores.banks[name]
        dense = normalize_rows(compared.patches.banks[name].numpy(), scale)
        np.testing.assert_allclose(rows[owner], dense, atol=1e-4 * np.abs(dense).max())
        differs = np.flatnonzero(nearest != expected.nearest)
        assert len(differs) < 0.001 * len(nearest)
        reached = np.linalg.norm(dense[differs] - bank[nearest[differs]], axis=1)
        np.testing.assert_allclose(reached, expected.distances[differs], rtol=1e-5)


def test_the_published_rounding_is_close(setup: Setup):
    """What the code computes by expanded formulas: distances to banks and to group centres."""
    compared = compare(setup, "m3dm", blur="float")
    parameters, networks = compared.parameters, setup.networks_of(compared.parameters)
    switches = {"cdist": "expanded", "idw_distance": "expanded", "knn_ties": "any"}
    options = ReferenceOptions.of(parameters, **switches)
    published = reference_infer(setup.scan, networks, as_tensors(compared.banks), options)
    assert published.image_score == pytest.approx(compared.scores.image_score, rel=0.01)
    difference = np.abs(published.anomaly_map - compared.scores.anomaly_map).max()
    assert 0 < difference < 0.01 * published.anomaly_map.max()


def test_background_patches_are_part_of_the_answer(setup: Setup):
    """Patches without points are scored as zeros are, all alike."""
    compared = compare(setup, "m3dm-3d")
    background = (compared.patches.banks["point"] == 0).all(dim=1).numpy()
    assert 0.2 < background.mean() < 0.9
    distances = compared.scores.banks["point"].distances
    assert len(np.unique(distances[background])) == 1
    assert len(np.unique(distances[~background])) > 100


@pytest.fixture(scope="module")
def fitted(
    tmp_path_factory: pytest.TempPathFactory, make_dome: Callable[..., Scan]
) -> tuple[Detector, list[Scan]]:
    """A detector fitted by the front door, and its training scans."""
    folder = tmp_path_factory.mktemp("fit")
    fusion = save_uff(FeatureFusionBlock(384, 384, seed=3), folder / "uff.safetensors", {})
    fitted = {"point_patches": "28x28", "uff": str(fusion)}
    request = replace(SMALL, recipe=None, options={**SMALL.options, **fitted})
    train = [make_dome(seed, size=224) for seed in range(3)]
    return load(fit_scans(train, [], folder / "artifact", request)), train


def test_fitted_banks_are_the_published_greedy_of_dense_rows(fitted: tuple[Detector, list[Scan]]):
    """From the features that the fast half extracts: the rows, their scalars and their order."""
    detector, train = fitted
    parameters = M3dmOptions.from_manifest(detector.artifact.manifest.parameters)
    extractor = detector._pipeline.extractor
    dense = []
    for scan in train:
        features = extractor.extract(detector.prepare(scan), StageClock())
        queries = {name: bank_queries(features, parameters, name) for name in parameters.banks}
        rows = {name: torch.tensor(rows[owner]) for name, (rows, owner) in queries.items()}
        assert {name: len(row) for name, row in rows.items()} == dict.fromkeys(rows, 784)
        dense.append(DensePatches(rows, None))
    expected = reference_banks(dense, parameters)
    tensors = detector.artifact.tensors()
    for name, rows in expected.rows.items():
        (mean, std), (expected_mean, expected_std) = (
            parameters.bank_scales[name],
            expected.scales[name],
        )
        assert std == pytest.approx(expected_std, rel=1e-5)
        assert mean == pytest.approx(expected_mean, abs=1e-6 * std)  # LayerNorm: nearly 0
        bank = tensors[f"bank.{name}"]
        assert bank.shape == rows.shape
        np.testing.assert_allclose(bank, rows, rtol=1e-4, atol=1e-5)


def test_fitted_decision_is_the_published_one(fitted: tuple[Detector, list[Scan]]):
    detector, train = fitted
    pipeline = detector._pipeline
    said = []
    for scan in train:
        features = pipeline.extractor.extract(detector.prepare(scan), StageClock())
        by_bank = pipeline.bank_scores(features, StageClock())
        nothing = np.empty(0, np.int64)
        said.append(
            {n: BankScores(b.score, b.anomaly_map, nothing, nothing) for n, b in by_bank.items()}
        )
    expected = reference_decision(said, "svm")
    parameters = M3dmOptions.from_manifest(detector.artifact.manifest.parameters)
    assert parameters.score_weights == pytest.approx(expected.score_weights, rel=1e-6)
    assert parameters.map_weights == pytest.approx(expected.map_weights, rel=1e-6)
    assert (parameters.score_offset, parameters.map_offset) == (0, 0)


def test_reference_of_an_artifact_gives_its_answer(
    fitted: tuple[Detector, list[Scan]], make_dome: Callable[..., Scan]
):
    """All but the backbones from the artifact: banks, scalars, decision, UFF from its graphs."""
    detector, _ = fitted
    parameters = M3dmOptions.from_manifest(detector.artifact.manifest.parameters)
    infer = reference_pipeline(detector.artifact, SMALL.weights)
    prepared = detector.prepare(make_dome(9, size=224))
    slow = infer(prepared, StageClock())
    fast = detector.infer_prepared(prepared)
    assert_equal(M3dmScores(fast.anomaly_map, fast.image_score), slow, parameters)
