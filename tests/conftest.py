"""Fixtures shared by all tests: a tiny detector artifact, a synthetic scan, the shared data."""

from __future__ import annotations

from gpu_test_device import TEST_DEVICE  # isort: skip  (before any triton)

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from cuda_emulation import build as emulation
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from ops.embedding_cases import embedder_weights

from mmad_fast.artifact import Golden, write_artifact
from mmad_fast.methods.branches.point_groups.options import EMBEDDER_PREFIX
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.family import get_recipe
from mmad_fast.ops.pixel_mapping import MappingNetwork
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS
from mmad_fast.threshold import VALIDATION, Threshold

RGB_SIZE, TOKEN_GRID, RGB_DIM = 56, 7, 8
NUM_GROUPS, GROUP_SIZE, POINT_DIM = 24, 16, 6
TINY_PARAMETERS = CfmOptions(
    rgb_backbone="dino-vitb8",
    rgb_size=RGB_SIZE,
    token_grid=TOKEN_GRID,
    rgb_layers=1,
    point_layers=(0,),
    grid_size=56,
    num_groups=NUM_GROUPS,
    group_size=GROUP_SIZE,
)
FIT_HALF = (
    "torch",
    "triton",
    "timm",
    "onnx",
    "onnxscript",
    "sklearn",
    "scipy",
    "open3d",
    "typer",
    "matplotlib",
    "pandas",
)
"""Packages that loading and running a detector must do without."""


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The data that lies beside the repository; tests that need it skip where it is absent."""
    default = Path(__file__).parents[1] / ".." / "shared"
    folder = Path(os.environ.get("MMAD_FAST_SHARED", default)).resolve()
    if not (folder / "data").is_dir():
        pytest.skip("the shared data folder is not there (set MMAD_FAST_SHARED)")
    return folder


@pytest.fixture(scope="session")
def cuda_kernels() -> ModuleType:
    """csrc/cuda_bindings.cpp on the host, or on the GPU where that is the device of the tests."""
    if TEST_DEVICE == "cuda":
        from mmad_fast import _cuda_kernels

        return _cuda_kernels
    reason = emulation.refusal()
    if reason is not None:
        pytest.skip(reason)
    sanitize = os.environ.get("MMAD_FAST_EMULATION_SANITIZE") == "1"
    sources = emulation.kernel_sources()
    return emulation.load(emulation.build(emulation.KERNELS_MODULE, sources, sanitize=sanitize))


def make_arrays(seed: int = 0, size: int = 96) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A scan of a bumpy disc on a plane: rgb (size, size, 3) uint8, xyz float32 metres."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:size, :size].astype(np.float64) + 0.5
    radius = np.hypot(u - size / 2, v - size / 2) / size
    z = np.full((size, size), 0.5)
    disc = radius < 0.3
    z[disc] -= 0.02 + 0.004 * np.cos(12 * radius[disc])
    focal = 2.5 * size
    xyz = np.stack([(u - size / 2) * z / focal, (v - size / 2) * z / focal, z], axis=-1)
    xyz[..., 2] += rng.normal(0, 1e-4, z.shape)
    rgb = np.where(disc[..., None], (170, 120, 60), (90, 90, 95)) + rng.integers(
        -9, 9, (size, size, 3)
    )
    return rgb.astype(np.uint8), xyz.astype(np.float32)


@pytest.fixture
def scan_arrays() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    return make_arrays()


@pytest.fixture
def pretend_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch tensors on TEST_DEVICE count as arrays on a CUDA device and all GPU backends run. Where
    that is the CPU, the CUDA kernels are the emulated ones; on a GPU nothing is pretended."""
    if TEST_DEVICE == "cuda":
        return
    from mmad_fast.gpu import cuda_kernels, device_arrays, dlpack

    emulated = request.getfixturevalue("cuda_kernels")
    types = device_arrays.DEVICE_TYPES | {dlpack.CPU}
    monkeypatch.setattr(device_arrays, "DEVICE_TYPES", types)
    monkeypatch.setattr(cuda_kernels, "kernels", lambda: emulated)
    for problem in ("_cuda_problem", "_torch_problem", "_triton_problem"):
        monkeypatch.setattr(cuda_kernels, problem, lambda: None)


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete CFM artifact of 2 MB, with hand-made graphs: no torch, no training."""
    from mmad_fast.detector import load

    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    graphs = {
        "rgb": _save(_rgb_graph(rng), folder / "rgb.onnx"),
        "points": _save(_point_graph(rng), folder / "points.onnx"),
    }
    tensors = {
        **_mapping("rgb_to_point", RGB_DIM, POINT_DIM, rng),
        **_mapping("point_to_rgb", POINT_DIM, RGB_DIM, rng),
        **embedder_weights(uses_cloud_statistics=True).to_tensors(EMBEDDER_PREFIX),
    }
    rgb, xyz = make_arrays()
    arguments = {
        "method": "cfm-t",
        "family": "cfm",
        "preprocess": get_recipe("cfm").to_dict(),
        "parameters": TINY_PARAMETERS.to_manifest(),
        "weights": {"rgb": {"kind": "random"}, "point": {"kind": "random"}},
        "graphs": graphs,
        "tensors": tensors,
    }
    blank = Golden(rgb, xyz, np.zeros((56, 56), np.float32), 0.0)
    draft = write_artifact(folder / "draft", threshold=None, golden=blank, **arguments)
    result = load(draft).infer(rgb, xyz)
    golden = Golden(rgb, xyz, result.anomaly_map, result.image_score)
    threshold = Threshold(result.image_score * 1.5, 0.99, 1, VALIDATION)
    return write_artifact(folder / "artifact", threshold=threshold, golden=golden, **arguments)


def _mapping(name: str, dim_in: int, dim_out: int, rng: np.random.Generator) -> dict[str, NDArray]:
    hidden = (dim_in + dim_out) // 2
    sizes = {"input": (hidden, dim_in), "projection": (hidden, hidden), "output": (dim_out, hidden)}
    tensors = {}
    for layer, shape in sizes.items():
        tensors[f"{name}.{layer}.weight"] = rng.normal(0, 0.5, shape).astype(np.float32)
        tensors[f"{name}.{layer}.bias"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
    network = MappingNetwork.from_tensors(tensors, f"{name}.")
    return {**tensors, **network.rotated_tensors(f"{name}.")}


def _rgb_graph(rng: np.random.Generator) -> onnx.ModelProto:
    """image (1, 3, 56, 56) -> tokens (1, 49, 8): one patch embedding."""
    patch = RGB_SIZE // TOKEN_GRID
    weight = rng.normal(0, 0.1, (RGB_DIM, 3, patch, patch)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["grid"], strides=[patch, patch]),
        helper.make_node("Reshape", ["grid", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
    ]
    constants = {"weight": weight, "shape": np.array([1, RGB_DIM, TOKEN_GRID**2], np.int64)}
    return _model(
        nodes,
        {"image": (1, 3, RGB_SIZE, RGB_SIZE)},
        {"tokens": (1, TOKEN_GRID**2, RGB_DIM)},
        constants,
    )


def _point_graph(rng: np.random.Generator) -> onnx.ModelProto:
    """tokens (1, 24, 384), centers (1, 24, 3) -> features (1, 24, 6): two linear maps."""
    nodes = [
        helper.make_node("MatMul", ["tokens", "local"], ["mixed"]),
        helper.make_node("MatMul", ["centers", "position"], ["placed"]),
        helper.make_node("Add", ["mixed", "placed"], ["features"]),
    ]
    constants = {
        "local": rng.normal(0, 0.05, (TOKEN_CHANNELS, POINT_DIM)).astype(np.float32),
        "position": rng.normal(0, 5, (3, POINT_DIM)).astype(np.float32),
    }
    inputs = {"tokens": (1, NUM_GROUPS, TOKEN_CHANNELS), "centers": (1, NUM_GROUPS, 3)}
    return _model(nodes, inputs, {"features": (1, NUM_GROUPS, POINT_DIM)}, constants)


def _model(nodes: list, inputs: dict, outputs: dict, constants: dict) -> onnx.ModelProto:
    def values(shapes: dict) -> list:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]

    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
