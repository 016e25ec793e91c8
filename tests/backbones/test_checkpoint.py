"""Loading is strict by key and shape, and says which key is wrong."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmad_fast.backbones import build_point_backbone, build_rgb_backbone
from mmad_fast.errors import InvalidInputError, WeightsError


@pytest.mark.parametrize("name", ["dino-vitb8", "dinov2-vits14"])
def test_official_vit_keys_load_completely(name, fake_state, save):
    state = fake_state(name)
    network = build_rgb_backbone(name, num_layers=2, weights=save(state))
    loaded = network.state_dict()
    for key, value in state.items():
        if key == "mask_token" or (key.startswith("blocks.") and int(key.split(".")[1]) >= 2):
            assert key not in loaded
        elif key != "pos_embed" or value.shape[1] == 785:
            assert torch.equal(loaded[key], value), key
    assert set(loaded) <= set(state)
    assert network.weights_source.kind == "file"
    assert len(network.weights_source.sha256) == 64


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state},
        lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"module.backbone.{k}": v for k, v in state.items()},
        lambda state: state | {"head.weight": torch.zeros(1000, 768), "head.bias": torch.zeros(9)},
    ],
    ids=["state_dict", "teacher", "model", "prefixes", "head"],
)
def test_nested_and_prefixed_vit_checkpoints_load(wrap, fake_state, save):
    state = fake_state("dino-vitb8")
    network = build_rgb_backbone("dino-vitb8", num_layers=1, weights=save(wrap(state)))
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(network.state_dict()[key], state[key])


def test_released_point_mae_loads_with_prefixes_decoder_and_optimizer(fake_state, save):
    state = fake_state("point-mae")
    released = {
        "base_model": {f"module.{key}": value for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.001, "params": [0]}]},
        "epoch": 299,
        # The release stores its metrics as a NumPy number.
        "metrics": {"acc": np.float64(0.5)},
        "best_metrics": {"acc": np.float64(0.5)},
    }
    network = build_point_backbone(layers=(1, 2), weights=save(released))
    loaded = network.state_dict()
    for key, value in loaded.items():
        assert torch.equal(value, state[f"MAE_encoder.{key}"]), key
    assert not any(key.startswith("blocks.blocks.3.") for key in loaded)
    assert sum(key.endswith("attn.qkv.weight") for key in loaded) == 3


def test_safetensors_in_half_precision_load_as_float32(fake_state, tmp_path):
    state = {
        key: value.half().contiguous()
        for key, value in fake_state("dinov2-vits14").items()
        if not key.startswith("blocks.") or key.startswith("blocks.0.")
    }
    save_file(state, tmp_path / "half.safetensors")
    network = build_rgb_backbone(
        "dinov2-vits14", num_layers=1, weights=tmp_path / "half.safetensors"
    )
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert torch.equal(network.norm.bias, state["norm.bias"].float())


def test_missing_key_is_named_with_its_expected_shape(fake_state, save):
    state = fake_state("dino-vitb8")
    del state["blocks.1.attn.qkv.weight"]
    with pytest.raises(
        WeightsError,
        match=r"dino-vitb8 with 2 blocks: key 'blocks\.1\.attn\.qkv\.weight' is missing "
        r"\(expected shape \(2304, 768\)\)",
    ):
        build_rgb_backbone("dino-vitb8", num_layers=2, weights=save(state))


def test_misshapen_key_is_named_with_both_shapes(fake_state, save):
    state = fake_state("point-mae")
    state["MAE_encoder.encoder.first_conv.0.weight"] = torch.zeros(64, 3, 1)
    with pytest.raises(
        WeightsError,
        match=r"'encoder\.first_conv\.0\.weight' has shape \(64, 3, 1\), expected \(128, 3, 1\)",
    ):
        build_point_backbone(layers=(0,), weights=save(state))


def test_unknown_key_is_named(fake_state, save):
    state = fake_state("dinov2-vits14") | {"register_tokens": torch.zeros(1, 4, 384)}
    with pytest.raises(WeightsError, match=r"'register_tokens' \(1, 4, 384\) is unknown"):
        build_rgb_backbone("dinov2-vits14", num_layers=1, weights=save(state))


def test_block_13_is_not_taken_for_a_cut_block(fake_state, save):
    state = fake_state("dinov2-vits14") | {"blocks.12.norm1.weight": torch.zeros(384)}
    with pytest.raises(WeightsError, match=r"'blocks\.12\.norm1\.weight' \(384,\) is unknown"):
        build_rgb_backbone("dinov2-vits14", num_layers=1, weights=save(state))


def test_another_networks_checkpoint_is_refused_with_a_short_message(fake_state, save):
    with pytest.raises(WeightsError, match=r"does not fit dino-vitb8 .* and \d+ more") as caught:
        build_rgb_backbone("dino-vitb8", num_layers=12, weights=save(fake_state("dinov2-vits14")))
    assert len(str(caught.value)) < 2000


def test_nan_weights_are_named(fake_state, save):
    state = fake_state("dino-vitb8")
    state["norm.bias"] = torch.full((768,), float("nan"))
    with pytest.raises(WeightsError, match=r"'norm\.bias' has values that are not finite"):
        build_rgb_backbone("dino-vitb8", num_layers=1, weights=save(state))


def test_two_networks_in_one_file_are_refused(fake_state, save):
    state = fake_state("dino-vitb8")
    state["module.norm.bias"] = state["norm.bias"]
    with pytest.raises(WeightsError, match=r"two keys stand for 'norm\.bias'"):
        build_rgb_backbone("dino-vitb8", num_layers=1, weights=save(state))


def test_a_file_without_weights_is_refused(save):
    with pytest.raises(WeightsError, match="holds no weights: found a dictionary with the keys a"):
        build_rgb_backbone("dino-vitb8", num_layers=1, weights=save({"a": 1}))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"<html>not found</html>" * 9])
def test_damaged_files_are_refused(content, suffix, tmp_path):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        build_rgb_backbone("dino-vitb8", num_layers=1, weights=path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_truncated_checkpoint_is_refused(share, fake_state, save):
    path = save(fake_state("point-mae"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(WeightsError, match=r"cannot be read as a torch checkpoint"):
        build_point_backbone(layers=(0,), weights=path)


def test_code_in_a_pickle_does_not_run(tmp_path, save):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    with pytest.raises(WeightsError, match="cannot be read as a torch checkpoint"):
        build_rgb_backbone("dino-vitb8", num_layers=1, weights=save({"a": Touch()}))
    assert not (tmp_path / "touched").exists()


def test_out_of_range_options_are_refused():
    with pytest.raises(InvalidInputError, match=r"there is no RGB backbone 'vit'; known are dino"):
        build_rgb_backbone("vit", num_layers=1, weights="random")
    with pytest.raises(InvalidInputError, match="num_layers is 13; it must be between 1 and 12"):
        build_rgb_backbone("dino-vitb8", num_layers=13, weights="random")
    with pytest.raises(InvalidInputError, match="image_size is 225; .* multiple of 8"):
        build_rgb_backbone("dino-vitb8", num_layers=1, weights="random", image_size=225)
    for layers in ((), (3, 1), (2, 2), (12,), (-1,)):
        with pytest.raises(InvalidInputError, match="point layers are .* give one or more of 0-11"):
            build_point_backbone(layers=layers, weights="random")
    with pytest.raises(InvalidInputError, match="batch_norm is 'batch'; it must be one of cloud"):
        build_point_backbone(layers=(0,), weights="random", batch_norm="batch")
    with pytest.raises(InvalidInputError, match="drop_path is 'on'; it must be one of off"):
        build_point_backbone(layers=(0,), weights="random", drop_path="on")
