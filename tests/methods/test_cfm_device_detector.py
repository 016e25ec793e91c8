"""The CFM detector on a CUDA device against the one on the CPU, from the same artifact. Without a
GPU the CUDA kernels are emulated, Triton's interpreted, and ONNX Runtime writes into torch tensors
on the CPU: the same code from prepared scan to anomaly map."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from conftest import make_arrays
from gpu_test_device import TEST_DEVICE
from tiny_artifacts import write_tiny_cfm_tokens

from mmad_fast import Detector, load
from mmad_fast.artifact import read_artifact
from mmad_fast.engines import onnx_runtime
from mmad_fast.engines.selection import choose_engine
from mmad_fast.errors import BackendUnavailableError, EmptyScanError
from mmad_fast.methods.branches import device_stream
from mmad_fast.methods.cfm.detector import CfmPipeline
from mmad_fast.methods.cfm.device_detector import DeviceCfmPipeline

TOLERANCE = 1e-4
"""Of the map's maximum; as between the CPU detector and the published pipeline."""


@pytest.fixture
def on_device(pretend_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load(device="cuda")` gives a detector on TEST_DEVICE."""
    monkeypatch.setattr(device_stream, "TORCH_DEVICE", TEST_DEVICE)
    if TEST_DEVICE != "cuda":
        monkeypatch.setitem(onnx_runtime.PROVIDERS, "cuda", onnx_runtime.PROVIDERS["cpu"])


def pair(path: Path, **parameters: object) -> tuple[Detector, Detector]:
    """The detectors on the device and on the CPU, with other parameters than the artifact's."""
    artifact = read_artifact(path)
    manifest = replace(artifact.manifest, parameters=artifact.manifest.parameters | parameters)
    artifact = replace(artifact, manifest=manifest)
    choice = choose_engine(artifact.engine_files(), engine="onnxruntime")
    device, host = (
        Detector(artifact, pipeline.from_artifact(artifact, choice), choice)
        for pipeline in (DeviceCfmPipeline, CfmPipeline)
    )
    return device, host


def assert_same_answer(device: Detector, host: Detector, seed: int) -> None:
    found, wanted = device.infer(*make_arrays(seed)), host.infer(*make_arrays(seed))
    scale = float(wanted.anomaly_map.max())
    assert scale > 0
    np.testing.assert_allclose(
        found.anomaly_map, wanted.anomaly_map, rtol=0, atol=TOLERANCE * scale
    )
    assert found.image_score == pytest.approx(wanted.image_score, rel=TOLERANCE)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"pixel_stride": 2}, {"aggregation": "psi_2d"}, {"score_norm": "raw"}],
    ids=lambda parameters: ",".join(map(str, parameters.values())) or "published",
)
def test_answers_as_on_the_cpu(parameters: dict, tiny_artifact: Path, on_device: None) -> None:
    device, host = pair(tiny_artifact, **parameters)
    assert device.is_exact == host.is_exact
    assert_same_answer(device, host, seed=4)


@pytest.mark.parametrize("geometry", ["normals", "fpfh"])
def test_variants_without_point_groups_answer_as_on_the_cpu(
    geometry: Literal["normals", "fpfh"], tmp_path: Path, on_device: None
) -> None:
    device, host = pair(write_tiny_cfm_tokens(tmp_path / geometry, geometry))
    assert_same_answer(device, host, seed=4)


def test_the_golden_scan_is_answered_as_recorded(tiny_artifact: Path, on_device: None) -> None:
    detector = load(tiny_artifact, device="cuda")
    golden = detector.artifact.golden()
    result = detector.infer(golden.rgb, golden.xyz)
    scale = float(golden.expected_map.max())
    np.testing.assert_allclose(
        result.anomaly_map, golden.expected_map, rtol=0, atol=TOLERANCE * scale
    )
    on_the_cpu = load(tiny_artifact).infer(golden.rgb, golden.xyz).stage_ms
    assert [name for name in result.stage_ms if name != "upload"] == list(on_the_cpu)


def test_evaluation_maps_are_those_of_the_cpu(tiny_artifact: Path, on_device: None) -> None:
    anomaly_map = np.random.default_rng(0).random((56, 56)).astype(np.float32)
    found = load(tiny_artifact, device="cuda").published_evaluation_maps(anomaly_map)
    wanted = load(tiny_artifact).published_evaluation_maps(anomaly_map)
    np.testing.assert_array_equal(found, wanted)


def test_a_scan_with_too_few_points(tiny_artifact: Path, on_device: None) -> None:
    rgb, xyz = make_arrays()
    detector = load(tiny_artifact, device="cuda")
    with pytest.raises(EmptyScanError, match="has 0 foreground points"):
        detector.infer(rgb, np.zeros_like(xyz))


@pytest.mark.skipif(
    TEST_DEVICE != "cuda", reason="needs a GPU: Triton's interpreter serves one thread only"
)
def test_threads_may_share_a_detector(tiny_artifact: Path, on_device: None) -> None:
    detector = load(tiny_artifact, device="cuda")
    alone = [detector.infer(*make_arrays(seed)).anomaly_map for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        together = pool.map(lambda seed: detector.infer(*make_arrays(seed)).anomaly_map, range(2))
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="emulation only: the device is there")
def test_without_a_device_the_reason_is_given(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnx_runtime.PROVIDERS, "cuda", onnx_runtime.PROVIDERS["cpu"])
    with pytest.raises(BackendUnavailableError, match="no backend can run on arrays on a CUDA dev"):
        load(tiny_artifact, device="cuda")
