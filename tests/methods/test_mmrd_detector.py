"""MMRD and its kin from scans to an artifact, equal to the reference, on all inputs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_test_device import TEST_DEVICE
from onnx import load_model

from mmad_fast.artifact import read_artifact
from mmad_fast.backbones import wide_resnet
from mmad_fast.detector import Detector, load
from mmad_fast.engines import onnx_runtime, open_graph
from mmad_fast.errors import ArtifactError, EmptyScanError, InvalidInputError
from mmad_fast.export.deployment_graph import check_source, deployment_graph
from mmad_fast.export.graph_cost import graph_cost
from mmad_fast.methods.branches import device_stream
from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.feature_levels import options as level_options
from mmad_fast.methods.branches.feature_levels.extractor import (
    OUTPUT_NAMES,
    FeatureLevelExtractor,
)
from mmad_fast.methods.branches.feature_levels.graph import export_levels
from mmad_fast.methods.branches.feature_levels.network import (
    STATISTICS,
    build_network,
    with_statistics,
)
from mmad_fast.methods.family import get_family
from mmad_fast.methods.fit_request import FitRequest, FitTask, resolve_options
from mmad_fast.methods.fit_run import fit_scans
from mmad_fast.methods.mmrd import networks
from mmad_fast.methods.mmrd.detector import FeatureExtractor, MmrdPipeline, split_levels
from mmad_fast.methods.mmrd.options import STATISTICS_PREFIX, STUDENT_PREFIX, MmrdOptions
from mmad_fast.methods.mmrd.reference import (
    ReferenceNetworks,
    reference_infer,
    reference_pipeline,
)
from mmad_fast.methods.mmrd.student import build_student
from mmad_fast.methods.mmrd.student_graph import ComparisonGraph
from mmad_fast.methods.network_tensors import to_tensors
from mmad_fast.preprocess import prepare
from mmad_fast.scan import PreparedScan, Scan
from mmad_fast.stage_clock import StageClock

SCORE_TOLERANCE = MAP_TOLERANCE = 1e-4
"""Of scores relative to themselves, of maps relative to their maximum."""
IMAGE_SIZE = 64
METHODS: dict[str, dict[str, Any]] = {"mmrd": {"adapts": "auxiliary"}, "trd": {}, "fd": {}}
"""Those that are fitted: with fused maps, with two students, with a student that reads pictures.
RGB keeps its statistics, so that one graph of its teacher is enough."""


def small(method: str, **chosen: Any) -> FitRequest:
    """A request of narrow students and few passes over the scans."""
    own = {"student_width": 0.125, "epochs": 2, "rgb_weights": "random"}
    return FitRequest.of(method, **{**own, **METHODS.get(method, {}), **chosen})


@pytest.fixture(scope="module")
def scans(make_dome: Callable[..., Scan]) -> list[Scan]:
    return [make_dome(seed) for seed in range(4)]


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Any:
    """All networks have one block where the published ones have several, and read small
    pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level_options, "IMAGE_SIZE", IMAGE_SIZE)
        patch.setattr(wide_resnet, "NUM_BLOCKS", {1: 1, 2: 1, 3: 1})
        patch.setattr(networks, "STAGE_BLOCKS", (1, 1, 1))
        patch.setattr(networks, "BOTTLENECK_BLOCKS", 1)
        yield


@pytest.fixture(scope="module")
def artifacts(
    tmp_path_factory: pytest.TempPathFactory, scans: list[Scan]
) -> Iterator[Mapping[str, Path]]:
    """Artifacts by method; each teacher with its statistics is exported once, also afterwards."""
    folder = tmp_path_factory.mktemp("mmrd")
    kept: dict[str, Path] = {}

    def export_once(
        task: FitTask, teachers: Mapping[str, Any], images: Any
    ) -> BranchPart[FeatureLevelExtractor]:
        graphs = {}
        for name, network in teachers.items():
            buffers = [value.numpy().tobytes() for value in network.buffers()]
            key = hashlib.sha256(b"".join(buffers)).hexdigest()
            if key not in kept:
                kept[key] = export_levels(
                    network, folder / f"{key[:8]}.onnx", image_size=IMAGE_SIZE
                )
            graphs[name] = Path(shutil.copy(kept[key], task.scratch / f"{name}.onnx"))
        opened = {name: open_graph(path) for name, path in graphs.items()}
        return BranchPart(FeatureLevelExtractor(opened), graphs, {"kind": "random"}, {})

    paths = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmad_fast.methods.mmrd.fit.export_feature_levels", export_once)
        for method in METHODS:
            paths[method] = fit_scans(scans[:2], scans[2:3], folder / method, small(method))
        assert len(kept) == 2  # with the statistics of ImageNet and of depth
        yield paths


@pytest.fixture(scope="module")
def detector(artifacts: Mapping[str, Path]) -> Detector:
    return load(artifacts["mmrd"])


@pytest.mark.parametrize("method", METHODS)
def test_a_detector_equals_the_reference(
    artifacts: Mapping[str, Path], scans: list[Scan], method: str
) -> None:
    detector = load(artifacts[method])
    reference = reference_pipeline(read_artifact(artifacts[method]), {"rgb": "random"})
    cut = Scan(scans[3].rgb[:70], np.ascontiguousarray(scans[3].xyz[:70]), "cut")
    for scan in (scans[3], cut):
        prepared = detector.prepare(scan)
        expected = reference(prepared, StageClock())
        result = detector.infer_scan(scan)
        assert result.anomaly_map.shape == (256, 256)
        assert result.native_anomaly_map.shape == scan.size
        peak = np.abs(expected.anomaly_map).max()
        spread = expected.anomaly_map.max() - expected.anomaly_map.min()
        assert spread > 0.05 * peak  # an answer that can be wrong
        difference = np.abs(result.anomaly_map - expected.anomaly_map).max()
        assert difference <= MAP_TOLERANCE * peak
        assert result.image_score == pytest.approx(expected.image_score, rel=SCORE_TOLERANCE)
        assert result.image_score == result.anomaly_map.max()
        assert result.map_threshold == detector.threshold
    assert detector.replay_golden().agrees


def test_students_of_a_file_are_not_trained(
    artifacts: Mapping[str, Path], scans: list[Scan], tmp_path: Path
) -> None:
    trained = read_artifact(artifacts["trd"])
    networks = {
        name: {
            key.removeprefix(prefix): torch.from_numpy(tensor.copy())
            for key, tensor in trained.tensors().items()
            if key.startswith(prefix)
        }
        for name, prefix in {
            "student_rgb": f"{STUDENT_PREFIX}students.rgb.",
            "student_depth": f"{STUDENT_PREFIX}students.aux.",
        }.items()
    }
    for network in networks.values():
        norms = [key for key in network if key.endswith("running_mean")]
        network |= {
            k.replace("running_mean", "num_batches_tracked"): torch.tensor(1) for k in norms
        }
    file = tmp_path / "carrot.pth"
    torch.save(networks, file)
    chosen = {"student_weights": str(file), "student_width": 0.125, "rgb_weights": "random"}
    request = FitRequest.of("trd", **chosen)
    path = fit_scans(scans[:2], scans[2:3], tmp_path / "official", request)
    manifest = read_artifact(path).manifest
    own, others = (
        {name: value for name, value in one.parameters.items() if name != "training"}
        for one in (manifest, trained.manifest)
    )
    assert own == others  # mean and deviation of the maps, too
    assert manifest.weights["student"]["detail"] == "carrot.pth"
    assert "training_loss" not in manifest.parameters["training"]
    expected = load(artifacts["trd"]).infer_scan(scans[3])
    found = load(path).infer_scan(scans[3])
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["mmrd", "trd"])
def test_openvino_gives_the_same_answer(artifacts: Mapping[str, Path], method: str) -> None:
    pytest.importorskip("openvino", reason="openvino (extra 'openvino') is not installed")
    assert load(artifacts[method], engine="openvino").replay_golden().agrees


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("target", "precision"), [("openvino", "bf16"), ("tensorrt-rtx", "fp16"), ("onnx", "fp32")]
)
def test_the_students_can_be_exported(
    artifacts: Mapping[str, Path], method: str, target: str, precision: str
) -> None:
    artifact = read_artifact(artifacts[method])
    for name in artifact.manifest.graphs:
        if not name.startswith("student"):
            continue
        source = artifact.graph_path(name)
        model = deployment_graph(source, target=target, precision=precision)
        own = load_model(source)
        assert [one.name for one in model.graph.input] == [one.name for one in own.graph.input]
        assert graph_cost(model).multiply_adds == graph_cost(own).multiply_adds
        with pytest.raises(InvalidInputError, match="is a network of convolutions"):
            check_source(source, "int8")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("pretend_device")
def test_a_detector_on_a_device_gives_the_same_answer(
    artifacts: Mapping[str, Path],
    scans: list[Scan],
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_stream, "TORCH_DEVICE", TEST_DEVICE)
    if TEST_DEVICE != "cuda":
        monkeypatch.setitem(onnx_runtime.PROVIDERS, "cuda", onnx_runtime.PROVIDERS["cpu"])
    expected = load(artifacts[method]).infer_scan(scans[3])
    result = load(artifacts[method], device="cuda", engine="onnxruntime").infer_scan(scans[3])
    peak = np.abs(expected.anomaly_map).max()
    assert np.abs(result.anomaly_map - expected.anomaly_map).max() <= MAP_TOLERANCE * peak
    assert result.image_score == pytest.approx(expected.image_score, rel=SCORE_TOLERANCE)


class TorchGraph:
    """A network in place of its graph, which takes seconds to write."""

    def __init__(
        self, network: torch.nn.Module, inputs: Iterable[str], outputs: Iterable[str]
    ) -> None:
        self._network, self._inputs, self._outputs = network, list(inputs), list(outputs)

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs]
        made = [one.numpy() for one in self._network(*tensors)]
        return dict(zip(self._outputs, made, strict=True))


@pytest.fixture(scope="module")
def make_untrained(scans: list[Scan]) -> Callable[..., tuple[MmrdPipeline, ReferenceNetworks]]:
    """(method, its options) -> the run half and the reference's networks, untrained."""

    def make(method: str, **chosen: Any) -> tuple[MmrdPipeline, ReferenceNetworks]:
        options = resolve_options(FitRequest.of(method, student_width=0.125, **chosen))
        assert isinstance(options, MmrdOptions)
        if method == "trd":
            options = replace(options, map_means=(2.5, 2.0), map_stds=(0.1, 0.2))
        rng = np.random.default_rng(0)
        teacher = build_network(options, weights="random", seed=0)
        statistics = {
            modality: {
                key: (value.numpy() + rng.uniform(0, 0.5, value.shape)).astype(np.float32)
                for key, value in teacher.state_dict().items()
                if key.endswith(STATISTICS)
            }
            for modality in options.adapted_modalities
        }
        torch.manual_seed(0)
        student = build_student(options).eval()
        tensors = {
            f"{STATISTICS_PREFIX}{modality}.{key}": values
            for modality, found in statistics.items()
            for key, values in found.items()
        }
        tensors |= to_tensors(student, STUDENT_PREFIX)
        teachers: dict[str, Any] = {
            name: TorchGraph(
                with_statistics(teacher, statistics.get(name, {})), ("image",), OUTPUT_NAMES
            )
            for name in options.teacher_graphs
        }
        students: dict[str, Any] = {
            name: TorchGraph(
                ComparisonGraph(student, index, options).eval(),
                options.student_inputs,
                options.student_outputs,
            )
            for index, name in enumerate(options.student_graphs)
        }
        extractor = FeatureExtractor(FeatureLevelExtractor(teachers), options)
        pipeline = MmrdPipeline(extractor, students, options)
        return pipeline, ReferenceNetworks.of_tensors(teacher, tensors, options)

    return make


def prepared_for(options: MmrdOptions, scan: Scan) -> PreparedScan:
    return prepare(
        scan,
        options.prepared_by(get_family("mmrd").recipe),
        rgb_size=options.rgb_size,
        grid_size=options.grid_size,
    )


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        *((method, {}) for method in ("mmrd", "mmrd-rgb", "mmrd-aux", "trd", "rd", "fd", "mmfd")),
        *(("mmrd", {"fusion": fusion}) for fusion in ("auxiliary", "constant", "csa", "ssa", "se")),
        *(("mmrd", {"prototypes": text}) for text in ("0", "0,3,0", "3,0,3")),
        ("mmrd", {"interaction": False}),
        ("mmrd", {"bottleneck_input": "rgb", "smoothing_sigma": 0}),
        ("mmrd", {"auxiliary": "both"}),
        ("mmrd", {"auxiliary": "both", "adapts": "rgb"}),
        ("mmrd-aux", {"auxiliary": "both"}),
        ("mmfd", {"auxiliary": "both", "adapts": "auxiliary"}),
        ("trd", {"auxiliary": "depth", "adapts": "both"}),
        ("mmrd", {"rgb_backbone": "dinov2-vits14", "rgb_levels": (1, 2, 3)}),
        ("trd", {"rgb_backbone": "dinov2-vits14", "rgb_levels": (1, 2, 3), "adapts": "both"}),
    ],
)
def test_every_variant_and_switch_equals_the_reference(
    make_untrained: Callable[..., Any], scans: list[Scan], method: str, chosen: dict[str, Any]
) -> None:
    pipeline, networks = make_untrained(method, **chosen)
    options = pipeline.options
    prepared = prepared_for(options, scans[3])
    expected = reference_infer(prepared, networks, options)
    found = pipeline.score(prepared, StageClock())
    peak = np.abs(expected.anomaly_map).max()
    assert np.ptp(expected.anomaly_map) > 0.01 * peak  # an answer that can be wrong
    assert np.abs(found.anomaly_map - expected.anomaly_map).max() <= MAP_TOLERANCE * peak
    assert found.image_score == pytest.approx(expected.image_score, rel=SCORE_TOLERANCE)
    features = pipeline.extractor.extract(prepared, StageClock())
    again = pipeline.score_features(features, StageClock())
    np.testing.assert_array_equal(again.anomaly_map, found.anomaly_map)
    empty = replace(scans[0], xyz=np.zeros_like(scans[0].xyz), name="empty")
    with pytest.raises(EmptyScanError, match="scan 'empty' has 0 foreground points"):
        pipeline.score(prepared_for(options, empty), StageClock())


@pytest.mark.parametrize("method", ["mmrd", "mmrd-rgb", "mmrd-aux", "trd", "rd", "fd", "mmfd"])
def test_what_a_variant_does_not_read_changes_nothing(
    make_untrained: Callable[..., Any], scans: list[Scan], method: str
) -> None:
    pipeline, _ = make_untrained(method)

    def map_of(scan: Scan) -> Any:
        return pipeline.score(prepared_for(pipeline.options, scan), StageClock()).anomaly_map

    scan = scans[3]
    expected = map_of(scan)
    noise = np.random.default_rng(0).integers(0, 256, scan.rgb.shape, np.uint8)
    recoloured = map_of(replace(scan, rgb=noise))
    assert np.array_equal(recoloured, expected) == (method == "mmrd-aux")
    xyz = scan.xyz.copy()
    xyz[45:50, 45:50, 2] -= 0.004
    dented = map_of(replace(scan, xyz=xyz))
    assert np.array_equal(dented, expected) == (method in ("mmrd-rgb", "rd", "fd"))


def test_features_in_half_precision_give_nearly_the_scans_answer(
    detector: Detector, scans: list[Scan]
) -> None:
    pipeline = detector._pipeline
    assert isinstance(pipeline, MmrdPipeline)
    prepared = detector.prepare(scans[3])
    features = pipeline.extractor.extract(prepared, StageClock())
    size = sum(int(np.prod(shape)) for shape in pipeline.options.level_shapes)
    assert features.levels.shape == (2, size)
    assert features.pictures is None
    exact = pipeline.score(prepared, StageClock())
    halved = replace(features, levels=features.levels.astype(np.float16))
    rounded = pipeline.score_features(halved, StageClock())
    difference = np.abs(rounded.anomaly_map - exact.anomaly_map).max()
    assert 0 < difference < 0.01 * exact.anomaly_map.max()


def test_levels_are_views_of_a_row() -> None:
    row = np.arange(2 * 6 + 4, dtype=np.float32)
    first, second = split_levels(row, [(2, 2, 3), (1, 2, 2)])
    np.testing.assert_array_equal(first.ravel(), row[:12])
    np.testing.assert_array_equal(second[0, 0], [[12, 13], [14, 15]])
    assert np.shares_memory(first, row)


def test_the_artifact_holds_the_published_keys_and_the_statistics(
    artifacts: Mapping[str, Path],
) -> None:
    artifact = read_artifact(artifacts["mmrd"])
    assert set(artifact.manifest.graphs) == {"rgb", "aux", "student"}
    tensors = artifact.tensors()
    assert not [name for name in tensors if name.startswith("statistics_rgb")]
    assert tensors["statistics_aux.layer3.0.bn3.running_var"].shape == (1024,)
    assert "student.bn.bn_layer.0.conv1.weight" in tensors
    assert not [name for name in tensors if "layer4" in name]
    trd = read_artifact(artifacts["trd"])
    assert set(trd.manifest.graphs) == {"rgb", "student_rgb", "student_aux"}
    assert not [name for name in trd.tensors() if name.startswith("statistics")]
    assert len(trd.manifest.parameters["map_means"]) == 2


def test_a_manifest_that_does_not_fit_is_refused(artifacts: Mapping[str, Path]) -> None:
    changes: list[tuple[str, str, str, Any]] = [
        ("mmrd", "parameters", "rgb_size", 128),
        ("mmrd", "parameters", "modalities", "rgb"),
        ("mmrd", "parameters", "auxiliary", "both"),
        ("mmrd", "parameters", "auxiliary", "normals"),
        ("mmrd", "parameters", "distillation", "trd"),
        ("mmrd", "parameters", "map_means", [0.5]),
        ("trd", "parameters", "map_means", []),
        ("trd", "parameters", "map_stds", [0.1, 0.0]),
        ("trd", "parameters", "map_means", [0.1, float("nan")]),
    ]
    choices = {method: load(artifacts[method]).engine_choice for method in ("mmrd", "trd")}
    for method, part, key, value in changes:
        artifact = read_artifact(artifacts[method], verify=False)
        getattr(artifact.manifest, part)[key] = value
        with pytest.raises(ArtifactError, match="fit the detector again|fit again"):
            MmrdPipeline.from_artifact(artifact, choices[method])


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="but rd uses no aux features"):
        small("rd", auxiliary="normals")
    with pytest.raises(InvalidInputError, match="auxiliary is 'both', and TRD has students of two"):
        small("trd", auxiliary="both")
    with pytest.raises(InvalidInputError, match="prototypes changes nothing in trd"):
        small("trd", prototypes=(10,))
    with pytest.raises(InvalidInputError, match=r"prototypes is \(1, 2\); it must be one number"):
        small("mmrd", prototypes=(1, 2))


@pytest.mark.parametrize(
    ("chosen", "names", "graphs"),
    [
        ({}, ("rgb", "aux"), ("rgb", "aux")),
        ({"adapts": "none"}, ("rgb", "aux"), ("rgb", "rgb")),
        ({"adapts": "rgb"}, ("rgb", "aux"), ("rgb", "aux")),
        ({"auxiliary": "both"}, ("rgb", "aux", "aux2"), ("rgb", "aux", "aux2")),
        ({"auxiliary": "both", "adapts": "rgb"}, ("rgb", "aux", "aux2"), ("rgb", "aux", "aux")),
        ({"auxiliary": "both", "adapts": "none"}, ("rgb", "aux", "aux2"), ("rgb", "rgb", "rgb")),
    ],
)
def test_each_set_of_statistics_has_a_graph(
    chosen: dict[str, Any], names: tuple[str, ...], graphs: tuple[str, ...]
) -> None:
    options = resolve_options(FitRequest.of("mmrd", **chosen))
    assert isinstance(options, MmrdOptions)
    assert (options.modality_names, options.teacher_graphs) == (names, graphs)


@pytest.mark.parametrize(
    ("method", "inputs", "outputs"),
    [
        ("mmrd", ("rgb_1", "rgb_2", "rgb_3", "aux_1", "aux_2", "aux_3"), ("restored", "target")),
        ("mmrd-aux", ("aux_1", "aux_2", "aux_3"), ("restored",)),
        ("rd", ("rgb_1", "rgb_2", "rgb_3"), ("restored",)),
        ("trd", ("rgb_1", "rgb_2", "rgb_3", "aux_1", "aux_2", "aux_3"), ("restored",)),
        ("fd", ("rgb_image",), ("restored",)),
    ],
)
def test_what_a_students_graph_reads_and_makes(
    method: str, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    options = resolve_options(FitRequest(method))
    assert isinstance(options, MmrdOptions)
    assert tuple(options.student_inputs) == inputs
    assert tuple(options.student_outputs) == tuple(
        f"{kind}_{level}" for kind in outputs for level in (1, 2, 3)
    )


def test_speeds() -> None:
    options = resolve_options(FitRequest("mmrd", speed="fast"))
    assert isinstance(options, MmrdOptions)
    assert options.student_width < 1
    assert not options.is_exact
