"""The feature fusion of M3DM: its published form, its files, and the graphs made of it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmad_fast.engines import open_graph
from mmad_fast.errors import InvalidInputError, WeightsError
from mmad_fast.methods.m3dm import networks
from mmad_fast.methods.m3dm.networks import (
    POINT_ROWS_AT_ONCE,
    FeatureFusionBlock,
    export_uff_graphs,
    load_uff,
    read_training_facts,
    save_uff,
)

POINT, RGB = 40, 32
FACTS = {"training": {"pairing": "aligned", "schedule": "quick", "updates": 2}}

OFFICIAL_SHAPES = {
    "xyz_norm.weight": (1152,),
    "xyz_norm.bias": (1152,),
    "xyz_mlp.fc1.weight": (4608, 1152),
    "xyz_mlp.fc1.bias": (4608,),
    "xyz_mlp.fc2.weight": (1152, 4608),
    "xyz_mlp.fc2.bias": (1152,),
    "rgb_norm.weight": (768,),
    "rgb_norm.bias": (768,),
    "rgb_mlp.fc1.weight": (3072, 768),
    "rgb_mlp.fc1.bias": (3072,),
    "rgb_mlp.fc2.weight": (768, 3072),
    "rgb_mlp.fc2.bias": (768,),
    "rgb_head.weight": (256, 768),
    "rgb_head.bias": (256,),
    "xyz_head.weight": (256, 1152),
    "xyz_head.bias": (256,),
}


@pytest.fixture
def network() -> FeatureFusionBlock:
    """A small one whose norms and biases are not the initial ones."""
    network = FeatureFusionBlock(POINT, RGB, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def test_keys_and_sizes_are_the_published_ones() -> None:
    network = FeatureFusionBlock(1152, 768)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == OFFICIAL_SHAPES
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_840_896


def test_fused_patch_is_norm_and_mlp_without_residual_points_first(
    network: FeatureFusionBlock,
) -> None:
    rng = np.random.default_rng(0)
    point, rgb = rng.normal(3, 5, (7, POINT)), rng.normal(-2, 4, (7, RGB))
    weights = {key: tensor.double().numpy() for key, tensor in network.state_dict().items()}

    def fused(rows: np.ndarray, name: str) -> np.ndarray:
        centered = rows - rows.mean(1, keepdims=True)
        normed = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-5)
        normed = normed * weights[f"{name}_norm.weight"] + weights[f"{name}_norm.bias"]
        inner = normed @ weights[f"{name}_mlp.fc1.weight"].T + weights[f"{name}_mlp.fc1.bias"]
        gelu = 0.5 * inner * (1 + torch.erf(torch.from_numpy(inner / np.sqrt(2))).numpy())
        return gelu @ weights[f"{name}_mlp.fc2.weight"].T + weights[f"{name}_mlp.fc2.bias"]

    with torch.inference_mode():
        found = network(torch.from_numpy(point).float(), torch.from_numpy(rgb).float())
    expected = np.concatenate([fused(point, "xyz"), fused(rgb, "rgb")], axis=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_initial_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (FeatureFusionBlock(POINT, RGB, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.xyz_mlp.fc1.weight, again.xyz_mlp.fc1.weight)
    assert not torch.equal(first.xyz_mlp.fc1.weight, other.xyz_mlp.fc1.weight)
    assert torch.equal(torch.rand(1), expected)


def test_a_saved_network_is_loaded_with_its_facts(
    network: FeatureFusionBlock, tmp_path: Path
) -> None:
    path = save_uff(network, tmp_path / "new" / "uff.safetensors", FACTS)
    loaded = load_uff(path, point_channels=POINT, rgb_channels=RGB)
    assert not loaded.training
    for key, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert read_training_facts(path) == FACTS["training"]
    assert os.listdir(path.parent) == ["uff.safetensors"]
    with pytest.raises(InvalidInputError, match=r"uff\.pth.*\.safetensors"):
        save_uff(network, tmp_path / "uff.pth", {})


def test_an_official_checkpoint_is_loaded(network: FeatureFusionBlock, tmp_path: Path) -> None:
    """It has the optimiser and the command line beside the weights, and may lack the heads."""
    state = {key: value for key, value in network.state_dict().items() if "head" not in key}
    content = {
        "model": {f"module.{key}": value for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.003}]},
        "epoch": 2,
        "args": argparse.Namespace(lr=0.003, accum_iter=16),
    }
    torch.save(content, tmp_path / "checkpoint-0.pth")
    loaded = load_uff(tmp_path / "checkpoint-0.pth")
    assert (loaded.point_channels, loaded.rgb_channels) == (POINT, RGB)
    for key, value in state.items():
        assert torch.equal(loaded.state_dict()[key], value), key


class _Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran_code",)


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "args": _Code()}, "uff.pth")
    with pytest.raises(WeightsError, match="cannot be read as a torch checkpoint"):
        load_uff("uff.pth")
    assert not (tmp_path / "ran_code").exists()


def test_files_that_do_not_fit_are_refused(network: FeatureFusionBlock, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    path = tmp_path / "uff.safetensors"

    def refused(changed: dict[str, torch.Tensor], words: str, **channels: int) -> None:
        save_file(changed, path)
        with pytest.raises(WeightsError, match=words):
            load_uff(path, **channels)

    refused(state, "RGB features of 32 channels, and this detector's have 768", rgb_channels=768)
    refused(state, "point features of 40 channels.*have 384", point_channels=384)
    lacking = {key: value for key, value in state.items() if key != "rgb_mlp.fc2.bias"}
    refused(lacking, "'rgb_mlp.fc2.bias' is missing")
    refused({**state, "decoder.weight": torch.zeros(2)}, "'decoder.weight' is unknown")
    refused({**state, "xyz_mlp.fc1.bias": torch.zeros(3)}, r"has shape \(3,\), expected \(160,\)")
    refused({**state, "xyz_mlp.fc1.bias": torch.full((160,), torch.nan)}, "not finite")
    refused({"something.weight": torch.zeros(2)}, "holds no UFF: 'xyz_norm.weight' is missing")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="cannot be read as a safetensors checkpoint"):
        load_uff(path)
    with pytest.raises(WeightsError, match="nowhere.pth is not a file.*mmad-fast train-shared"):
        load_uff(tmp_path / "nowhere.pth")


def test_files_of_others_say_nothing_of_their_training(tmp_path: Path) -> None:
    assert read_training_facts(tmp_path / "checkpoint-0.pth") == {}
    path = tmp_path / "uff.safetensors"
    for metadata in (None, {"mmad_fast": "not JSON"}, {"mmad_fast": "[]"}, {"mmad_fast": "{}"}):
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        assert read_training_facts(path) == {}


def test_a_place_that_cannot_be_written_is_refused_and_left_alone(
    network: FeatureFusionBlock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "uff.safetensors"
    folder.mkdir()
    with pytest.raises(InvalidInputError, match="is a folder; give the file"):
        save_uff(network, folder, {})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidInputError, match="nothing can be written in .*file; choose a fold"):
        save_uff(network, tmp_path / "file" / "uff.safetensors", {})

    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(networks, "save_file", fail)
    path = tmp_path / "old.safetensors"
    path.write_text("old")
    with pytest.raises(WeightsError, match="old.safetensors: .*No space left.*choose a folder"):
        save_uff(network, path, {})
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "old.safetensors", "uff.safetensors"]


@pytest.mark.parametrize(("precision", "largest"), [("fp32", 1e-5), ("int8", 0.1)])
def test_graphs_give_what_the_network_gives(
    network: FeatureFusionBlock, tmp_path: Path, precision: str, largest: float
) -> None:
    graphs = export_uff_graphs(network, tmp_path, num_tokens=49, precision=precision)
    rng = np.random.default_rng(0)
    halves = {"uff_point": network.fuse_point, "uff_rgb": network.fuse_rgb}
    shapes = {"uff_point": (1, POINT_ROWS_AT_ONCE, POINT), "uff_rgb": (1, 49, RGB)}
    assert set(graphs) == set(halves)
    for name, path in graphs.items():
        engine = open_graph(path)
        assert engine.input_shapes == {"rows": shapes[name]}
        rows = rng.normal(size=shapes[name]).astype(np.float32)
        with torch.inference_mode():
            expected = halves[name](torch.from_numpy(rows)).numpy()
        found = engine.run({"rows": rows})["fused"]
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        assert difference < largest
        assert (difference > 1e-6) == (precision == "int8")


def test_an_unknown_precision_is_refused(network: FeatureFusionBlock, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="precision is 'fp16'.*'fp32' or 'int8'"):
        export_uff_graphs(network, tmp_path, num_tokens=49, precision="fp16")
