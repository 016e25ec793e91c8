"""The M3DM detector on a CUDA device against the one on the CPU, from the same artifact. Without a
GPU the CUDA kernels are emulated, Triton's interpreted, and ONNX Runtime writes into torch tensors
on the CPU: the same code from prepared scan to anomaly map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import POINT_DIM, RGB_DIM, TINY_PARAMETERS, TOKEN_GRID, make_arrays
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mmad_fast import Detector, load
from mmad_fast.artifact import Artifact, Golden, read_artifact, write_artifact
from mmad_fast.engines import onnx_runtime
from mmad_fast.errors import EmptyScanError
from mmad_fast.methods.branches import device_stream
from mmad_fast.methods.branches.point_groups.options import EMBEDDER_PREFIX, PointGroupOptions
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.methods.family import get_recipe
from mmad_fast.methods.m3dm.device_detector import mixed
from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.methods.memory_bank import device_search
from mmad_fast.methods.memory_bank.device_search import distances_to_neighbors, upload_bank
from mmad_fast.methods.memory_bank.options import BANK_PREFIX
from mmad_fast.ops import nearest_neighbor_scoring
from mmad_fast.ops.sparse_rows import SparseRows

TOLERANCE = 1e-4
"""Of the map's maximum, and of the score; as between the CPU detector and the published
pipeline."""

UFF_ROWS, BANK_ROWS = 256, 48
CHANNELS = {"point": POINT_DIM, "rgb": RGB_DIM, "fusion": POINT_DIM + RGB_DIM}
SCALES = {"point": (0.3, 1.5), "rgb": (0.0, 1.0), "fusion": (-0.2, 0.8)}

RGB: dict[str, Any] = {"banks": ("rgb",), "decision": "single", "blur": "float"}
TWO: dict[str, Any] = {
    "banks": ("point", "rgb"),
    "decision": "sum",
    "point_patches": "28x28",
    "blur": "float",
}
FUSION: dict[str, Any] = {**TWO, "banks": ("fusion",), "decision": "single"}


@pytest.fixture
def on_device(pretend_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Device detectors are on TEST_DEVICE."""
    monkeypatch.setattr(device_stream, "TORCH_DEVICE", TEST_DEVICE)
    if TEST_DEVICE != "cuda":
        monkeypatch.setitem(onnx_runtime.PROVIDERS, "cuda", onnx_runtime.PROVIDERS["cpu"])


def uff_graph(num_rows: int, num_channels: int, path: Path) -> Path:
    """rows (1, R, C) -> fused (1, R, C): a linear map and a tanh, not 0 at 0."""
    rng = np.random.default_rng(num_channels)
    constants = {
        "weight": rng.normal(0, 0.5, (num_channels, num_channels)).astype(np.float32),
        "bias": rng.normal(0, 0.5, num_channels).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["rows", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["fused"]),
    ]
    shape = (1, num_rows, num_channels)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("rows", "fused")
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "uff", values[:1], values[1:], initializers)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


@pytest.fixture
def make_artifact(tiny_artifact: Path, tmp_path: Path) -> Callable[..., Artifact]:
    """A function of M3dmOptions' fields: an artifact with the graphs of the tiny one, UFF graphs
    and random banks, whose rows are about as far apart as the features."""
    tiny = read_artifact(tiny_artifact)
    shared = {
        field.name: getattr(TINY_PARAMETERS, field.name)
        for branch in (VitTokenOptions, PointGroupOptions)
        for field in fields(branch)
    }

    def make(**changes: Any) -> Artifact:
        parameters = M3dmOptions(
            **shared,
            **changes,
            bank_scales={bank: SCALES[bank] for bank in changes["banks"]},
            score_weights={bank: 0.5 + len(bank) / 10 for bank in changes["banks"]},
            map_weights={bank: 2.0 - len(bank) / 10 for bank in changes["banks"]},
            score_offset=0.25,
        )
        graphs = {}
        if parameters.reads_rgb:
            graphs["rgb"] = tiny.graph_path("rgb")
        if parameters.reads_points:
            graphs["points"] = tiny.graph_path("points")
        if parameters.fuses:
            graphs["uff_point"] = uff_graph(UFF_ROWS, POINT_DIM, tmp_path / "uff_point.onnx")
            graphs["uff_rgb"] = uff_graph(TOKEN_GRID**2, RGB_DIM, tmp_path / "uff_rgb.onnx")
        rng = np.random.default_rng(1)
        tensors: dict[str, NDArray] = {
            BANK_PREFIX + bank: rng.normal(0, 1, (BANK_ROWS, CHANNELS[bank])).astype(
                parameters.bank_dtype
            )
            for bank in parameters.banks
        }
        if parameters.reads_points:
            embedder = tiny.tensors().items()
            tensors |= {name: t for name, t in embedder if name.startswith(EMBEDDER_PREFIX)}
        rgb, xyz = make_arrays()
        path = write_artifact(
            tmp_path / "artifact",
            method="m3dm",
            family="m3dm",
            preprocess=get_recipe("cfm").to_dict(),
            parameters=parameters.to_manifest(),
            threshold=None,
            weights={"rgb": {"kind": "random"}, "point": {"kind": "random"}},
            graphs=graphs,
            tensors=tensors,
            golden=Golden(rgb, xyz, np.zeros((56, 56), np.float32), 0.0),
        )
        return read_artifact(path)

    return make


def pair(artifact: Artifact) -> tuple[Detector, Detector]:
    """The detectors on the device and on the CPU."""
    return load(artifact.path, device="cuda"), load(artifact.path)


def test_banks_are_projected_where_the_host_searches_them_only(
    make_artifact: Callable[..., Artifact], on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    projected: list[int] = []
    choose = nearest_neighbor_scoring.choose_projection
    monkeypatch.setattr(
        nearest_neighbor_scoring,
        "choose_projection",
        lambda rows: projected.append(len(rows)) or choose(rows),
    )
    artifact = make_artifact(**TWO)
    load(artifact.path, device="cuda")
    assert projected == []
    load(artifact.path)
    assert projected == [BANK_ROWS] * 2


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
@pytest.mark.parametrize(
    "settings",
    [
        RGB,
        {**TWO, "distance_divisor": 1000.0, "bank_dtype": "float16"},
        {**TWO, "point_patches": "groups", "weight_epsilon": 1e-5},
        {**FUSION, "uses_uff": False, "reweighting": "paper"},
        {**TWO, "banks": ("point", "rgb", "fusion"), "decision": "svm", "reweighting": "none"},
    ],
    ids=lambda settings: "-".join(
        "+".join(value) if isinstance(value, tuple) else str(value)
        for name, value in settings.items()
        if name != "blur"
    ),
)
def test_answers_as_on_the_cpu(
    settings: dict[str, Any], make_artifact: Callable[..., Artifact], on_device: None
) -> None:
    device, host = pair(make_artifact(**settings))
    assert device.is_exact == host.is_exact == ("bank_dtype" not in settings)
    found, wanted = device.infer(*make_arrays(4)), host.infer(*make_arrays(4))
    scale = float(np.abs(wanted.anomaly_map).max())
    assert scale > 0
    assert found.image_score == pytest.approx(wanted.image_score, rel=TOLERANCE)
    np.testing.assert_allclose(
        found.anomaly_map, wanted.anomaly_map, rtol=0, atol=TOLERANCE * scale
    )
    assert sorted(set(found.stage_ms) - {"upload"}) == sorted(wanted.stage_ms)


def test_the_published_blur_differs_by_a_grey_level_at_most(
    make_artifact: Callable[..., Artifact], on_device: None
) -> None:
    """Rounding may move a distance over the edge of one of the 255 levels, before or after the
    blur; the blur itself is an average."""
    device, host = pair(make_artifact(**{**TWO, "blur": "pil8bit"}))
    found, wanted = device.infer(*make_arrays(4)), host.infer(*make_arrays(4))
    difference = np.abs(found.anomaly_map - wanted.anomaly_map)
    scale = float(wanted.anomaly_map.max())
    assert difference.max() <= (1 + TOLERANCE) / 255 * scale
    assert np.mean(difference > TOLERANCE * scale) < 0.02


def test_a_scan_with_too_few_points(
    make_artifact: Callable[..., Artifact], on_device: None
) -> None:
    rgb, xyz = make_arrays()
    device, _ = pair(make_artifact(**TWO))
    with pytest.raises(EmptyScanError, match="has 0 foreground points"):
        device.infer(rgb, np.zeros_like(xyz))


def test_without_a_bank_of_points_none_are_needed(
    make_artifact: Callable[..., Artifact], on_device: None
) -> None:
    rgb, xyz = make_arrays()
    device, host = pair(make_artifact(**RGB))
    found, wanted = (detector.infer(rgb, np.zeros_like(xyz)) for detector in (device, host))
    assert found.image_score == pytest.approx(wanted.image_score, rel=TOLERANCE)


def neighbor_distances(
    query: NDArray, nearest: int, rows: NDArray, monkeypatch: pytest.MonkeyPatch
) -> NDArray[np.float64]:
    monkeypatch.setattr(device_search, "BLOCK_ROWS", 32)
    tensors = (torch.from_numpy(array).to(TEST_DEVICE) for array in (query[None], rows))
    query_tensor, row_tensor = tensors
    index = torch.tensor([nearest], device=TEST_DEVICE)
    return distances_to_neighbors(query_tensor, index, row_tensor).cpu().numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("num_rows", [2, 3, 4, 32, 33, 100])
def test_neighbors_are_the_two_nearest_other_rows(
    num_rows: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(num_rows)
    rows = rng.normal(0, 1, (num_rows, 7)).astype(dtype)
    query = rng.normal(0, 1, 7).astype(np.float32)
    nearest = num_rows // 2
    wide = rows.astype(np.float64)
    order = [
        row for row in np.linalg.norm(wide - wide[nearest], axis=1).argsort() if row != nearest
    ]
    expected = np.linalg.norm(wide[order[:2]] - query, axis=1)
    found = neighbor_distances(query, nearest, rows, monkeypatch)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_equally_near_neighbors_are_taken_by_lowest_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = np.array([[0, 1], [0, 0], [1, 0], [-1, 0], [0, -1], [9, 9]], np.float32)
    query = np.array([0.5, 0.25], np.float32)
    found = neighbor_distances(query, 1, rows, monkeypatch)
    expected = np.linalg.norm(rows[[0, 2]].astype(np.float64) - query, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_copy_of_the_nearest_row_is_a_neighbor(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[3, 4], [0, 0], [0, 0]], np.float32)
    found = neighbor_distances(np.array([0, 1], np.float32), 1, rows, monkeypatch)
    np.testing.assert_allclose(found, [1, np.hypot(3, 3)], rtol=1e-12)


def test_a_bank_of_one_row_has_no_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.zeros((1, 3), np.float32)
    assert len(neighbor_distances(row[0], 0, row, monkeypatch)) == 0


def test_mixing_is_the_sparse_product_with_repeated_columns() -> None:
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 5, (7, 4)).astype(np.int32)
    values = rng.random((7, 4)).astype(np.float32)
    features = rng.normal(0, 1, (5, 3)).astype(np.float32)
    arrays = (np.arange(8) * 4, columns.ravel(), values.ravel())
    rows = SparseRows(*(torch.from_numpy(array).to(TEST_DEVICE) for array in arrays), 5)
    found = mixed(rows, torch.from_numpy(features).to(TEST_DEVICE)).cpu().numpy()
    np.testing.assert_allclose(found, (values[..., None] * features[columns]).sum(1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_bank_on_disk_is_uploaded_block_by_block(
    dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_search, "BLOCK_ROWS", 32)
    rows = np.random.default_rng(0).normal(0, 1, (65, 3)).astype(dtype)
    rows.tofile(tmp_path / "bank")
    on_disk = np.memmap(tmp_path / "bank", dtype, "r", shape=rows.shape)
    bank = upload_bank(on_disk, torch.device(TEST_DEVICE))
    np.testing.assert_array_equal(bank.cpu().numpy(), rows)
    assert bank.cpu().numpy().dtype == dtype
