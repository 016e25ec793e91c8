"""The BTF detector on a CUDA device against the one on the CPU, from the same artifact. Without a
GPU the CUDA kernels are emulated, Triton's interpreted, and ONNX Runtime writes into torch tensors
on the CPU: the same code from prepared scan to anomaly map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import make_arrays
from gpu_test_device import TEST_DEVICE
from onnx import TensorProto, helper, numpy_helper

from mmad_fast import load
from mmad_fast.artifact import Golden, write_artifact
from mmad_fast.engines import onnx_runtime
from mmad_fast.errors import EmptyScanError
from mmad_fast.methods.branches import device_stream
from mmad_fast.methods.btf.options import BANK, BtfOptions
from mmad_fast.methods.btf.patches import PATCH_GRID, pool_maps
from mmad_fast.methods.family import get_recipe
from mmad_fast.methods.memory_bank.options import BANK_PREFIX

TOLERANCE = 1e-4
"""Of the map's maximum, and of the score; as between the CPU detector and the published
pipeline."""
SIZE, BANK_ROWS, NUM_HISTOGRAM_BINS = 56, 40, 33


@pytest.fixture
def on_device(pretend_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Device detectors are on TEST_DEVICE."""
    monkeypatch.setattr(device_stream, "TORCH_DEVICE", TEST_DEVICE)
    if TEST_DEVICE != "cuda":
        monkeypatch.setitem(onnx_runtime.PROVIDERS, "cuda", onnx_runtime.PROVIDERS["cpu"])


def pyramid_graph(options: BtfOptions, path: Path) -> Path:
    """image (1, 3, R, R) -> maps of the options' shapes, each by one convolution of patches."""
    rng = np.random.default_rng(0)
    nodes, outputs, constants = [], [], []
    for name, (channels, height, width) in zip(
        options.output_names, options.map_shapes, strict=True
    ):
        side = options.rgb_size // height
        weight = rng.normal(0, 0.3 / side, (channels, 3, side, side)).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"{name}_weight"))
        nodes.append(
            helper.make_node("Conv", ["image", f"{name}_weight"], [name], strides=[side, side])
        )
        shape = (1, channels, height, width)
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    image = (1, 3, options.rgb_size, options.rgb_size)
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)]
    graph = helper.make_graph(nodes, "pyramid", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., Path]:
    """A function of BtfOptions' fields: an artifact of a small grid with a random bank."""

    def make(**changes: Any) -> Path:
        options = BtfOptions(
            rgb_size=SIZE, grid_size=SIZE, rgb_outputs=(1,), **{"blur": "float", **changes}
        )
        num_channels = NUM_HISTOGRAM_BINS if options.reads_points else 0
        graphs = {}
        if options.reads_rgb:
            num_channels += options.map_shapes[0][0]
            graphs["rgb"] = pyramid_graph(options, tmp_path / "rgb.onnx")
        rng = np.random.default_rng(1)
        bank = rng.uniform(0, 20, (BANK_ROWS, num_channels)).astype(options.bank_dtype)
        rgb, xyz = make_arrays()
        return write_artifact(
            tmp_path / "artifact",
            method="btf",
            family="btf",
            preprocess=get_recipe("btf").to_dict(),
            parameters=options.to_manifest(),
            threshold=None,
            weights={"rgb": {"kind": "random"}},
            graphs=graphs,
            tensors={BANK_PREFIX + BANK: bank},
            golden=Golden(rgb, xyz, np.zeros((SIZE, SIZE), np.float32), 0.0),
        )

    return make


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"features": ("rgb",), "bank_dtype": "float16"},
        {"features": ("fpfh",)},
        {"features": ("fpfh",), "fpfh_orientation": "camera", "bank_dtype": "float64"},
    ],
    ids=["both", "rgb float16", "fpfh", "fpfh camera float64"],
)
def test_answers_as_on_the_cpu(
    settings: dict[str, Any], make_artifact: Callable[..., Path], on_device: None
) -> None:
    path = make_artifact(**settings)
    device, host = load(path, device="cuda"), load(path)
    assert device.is_exact == host.is_exact == (settings.get("bank_dtype") != "float16")
    found, wanted = device.infer(*make_arrays(4)), host.infer(*make_arrays(4))
    scale = float(wanted.anomaly_map.max())
    assert scale > 0
    assert found.image_score == pytest.approx(wanted.image_score, rel=TOLERANCE)
    np.testing.assert_allclose(
        found.anomaly_map, wanted.anomaly_map, rtol=0, atol=TOLERANCE * scale
    )
    assert sorted(set(found.stage_ms) - {"upload"}) == sorted(wanted.stage_ms)
    again = device.infer(*make_arrays(4))
    np.testing.assert_array_equal(again.anomaly_map, found.anomaly_map)


def test_maps_are_pooled_as_on_the_host(
    make_artifact: Callable[..., Path], on_device: None
) -> None:
    extractor = load(make_artifact(), device="cuda")._pipeline.extractor
    feature_map = np.random.default_rng(2).normal(0, 1, (3, 14, 28)).astype(np.float32)
    found = extractor._pool_maps((torch.from_numpy(feature_map).to(TEST_DEVICE),)).cpu().numpy()
    assert found.shape == (PATCH_GRID**2, 3)
    np.testing.assert_allclose(found, pool_maps([feature_map], dtype="float64"), atol=1e-6)


def test_a_scan_without_points(make_artifact: Callable[..., Path], on_device: None) -> None:
    rgb, xyz = make_arrays()
    device = load(make_artifact(), device="cuda")
    with pytest.raises(EmptyScanError, match="has 0 foreground points"):
        device.infer(rgb, np.zeros_like(xyz))
