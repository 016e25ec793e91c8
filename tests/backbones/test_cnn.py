"""The convolutional networks against transformers' building blocks and their owners' packages."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from official_cnns import (
    OUTPUTS,
    PACKAGES,
    known_image,
    known_weights,
    official_shapes,
    owners_maps,
    sample,
)
from torch import Tensor, nn

from mmad_fast.backbones import build_cnn_backbone
from mmad_fast.backbones.cnn import BATCH_COUNTER
from mmad_fast.backbones.convolutional import ConvolutionalNetwork
from mmad_fast.backbones.efficientnet import SameConv2d
from mmad_fast.backbones.table import CNN_BACKBONES
from mmad_fast.errors import InvalidInputError, WeightsError

RECORDED = Path(__file__).parents[1] / "fixtures" / "cnn_maps.npz"
NAMES = tuple(CNN_BACKBONES)


def with_known_weights(name: str, outputs: tuple[int, ...]) -> ConvolutionalNetwork:
    network = build_cnn_backbone(name, outputs=outputs, weights="random", image_size=96)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(known_weights(name, shapes))
    return network


def maps_of(network: nn.Module) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        maps: tuple[Tensor, ...] = network(known_image())
    return maps


def assert_equal_maps(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0.1  # nothing has died out
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_maps_equal_those_recorded_from_the_owners_packages(name: str):
    recorded = np.load(RECORDED)
    maps = maps_of(with_known_weights(name, OUTPUTS[name]))
    for output, found in zip(OUTPUTS[name], maps, strict=True):
        expected = recorded[f"{name}/{output}"]
        assert_equal_maps(torch.from_numpy(sample(found)), torch.from_numpy(expected))


@pytest.mark.parametrize("name", NAMES)
def test_maps_equal_the_owners_packages(name: str):
    """Their keys and shapes are those of the fake checkpoints, too."""
    pytest.importorskip(PACKAGES[name], reason=f"the comparison needs {PACKAGES[name]}")
    maps = maps_of(with_known_weights(name, OUTPUTS[name]))
    for found, expected in zip(maps, owners_maps(name), strict=True):
        assert_equal_maps(found, expected)


# transformers' names and the official ones.
RENAMES = (
    (r"^embeddings\.convolution\.", "_conv_stem."),
    (r"^embeddings\.batchnorm\.", "_bn0."),
    (r"^encoder\.blocks\.", "_blocks."),
    (r"expansion\.expand_conv\.", "_expand_conv."),
    (r"expansion\.expand_bn\.", "_bn0."),
    (r"depthwise_conv\.depthwise_conv\.", "_depthwise_conv."),
    (r"depthwise_conv\.depthwise_norm\.", "_bn1."),
    (r"squeeze_excite\.reduce\.", "_se_reduce."),
    (r"squeeze_excite\.expand\.", "_se_expand."),
    (r"projection\.project_conv\.", "_project_conv."),
    (r"projection\.project_bn\.", "_bn2."),
)


def test_efficientnet_equals_transformers():
    """Its `depthwise_padding` names the blocks that 456 pixels pad on all sides alike."""
    transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")
    config = transformers.EfficientNetConfig(
        image_size=456,
        width_coefficient=1.6,
        depth_coefficient=2.2,
        depthwise_padding=[13, 27],
        hidden_dim=2048,
    )
    peer = transformers.EfficientNetModel(config).eval()
    network = with_known_weights("efficientnet-b5", (2, 13, 27, 35))
    weights, renamed = network.state_dict(), {}
    for key in peer.state_dict():
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if name in weights:
            renamed[key] = weights[name]
    assert len(renamed) == len(weights)
    peer.load_state_dict(renamed, strict=False)
    with torch.inference_mode():
        states = peer(known_image(), output_hidden_states=True).hidden_states
    for output, found in zip(network.outputs, maps_of(network), strict=True):
        assert_equal_maps(found, states[output + 1])


def test_wide_resnet_equals_transformers():
    """Of whose ResNet only the bottleneck can be widened."""
    pytest.importorskip("transformers", reason="the comparison needs transformers")
    peers = import_module("transformers.models.resnet.modeling_resnet")
    network = with_known_weights("wide-resnet50-2", (1, 2, 3))
    names = ("convolution", "normalization")

    def fill(peer: nn.Module, found: nn.Module, pairs: tuple[tuple[str, str], ...]) -> nn.Module:
        for name, (conv, norm) in zip([n for n, _ in peer_layers(peer)], pairs, strict=True):
            for part, own in zip(names, (conv, norm), strict=True):
                state = found.get_submodule(own).state_dict()
                peer.get_submodule(f"{name}.{part}").load_state_dict(state)
        return peer.eval()

    def peer_layers(peer: nn.Module) -> list[tuple[str, nn.Module]]:
        return [(n, m) for n, m in peer.named_modules() if hasattr(m, "normalization")]

    config = import_module("transformers").ResNetConfig(embedding_size=64)
    features = known_image()
    expected = []
    with torch.inference_mode():
        features = fill(peers.ResNetEmbeddings(config), network, (("conv1", "bn1"),))(features)
        for layer in (1, 2, 3):
            for block in network.get_submodule(f"layer{layer}"):
                has_shortcut = isinstance(block.downsample, nn.Sequential)
                shortcut = (("downsample.0", "downsample.1"),) if has_shortcut else ()
                peer = peers.ResNetBottleNeckLayer(
                    block.conv1.in_channels,
                    block.conv3.out_channels,
                    stride=block.conv2.stride[0],
                    reduction=2,
                )
                own = (*shortcut, ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
                features = fill(peer, block, own)(features)
            expected.append(features)
    for found, wanted in zip(maps_of(network), expected, strict=True):
        assert_equal_maps(found, wanted)


def test_padding_is_that_of_456_pixels_whatever_the_input_is():
    """Source: method facts 9.2: (1, 1) at 57 -> 29 and (2, 2) at 29 -> 15."""
    network = build_cnn_backbone("efficientnet-b5", outputs=(35,), weights="random")
    pads = {
        name: (int(conv.padding[0]), int(conv.padding[0]) + conv.has_odd_pixel)
        for name, conv in network.named_modules()
        if isinstance(conv, SameConv2d) and conv.stride[0] == 2
    }
    assert pads == {
        "_conv_stem": (0, 1),
        "_blocks.3._depthwise_conv": (0, 1),
        "_blocks.8._depthwise_conv": (1, 2),
        "_blocks.13._depthwise_conv": (1, 1),
        "_blocks.27._depthwise_conv": (2, 2),
    }


CUTS = {"wide-resnet50-2-timm": (1,), "wide-resnet50-2": (2,), "efficientnet-b5": (8,)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("has_counters", [True, False], ids=["counters", "no-counters"])
def test_official_files_load_without_what_is_cut(name, has_counters, fake_state, save):
    """Classifiers and later parts are known to be of no use; torchvision's file has no counters of
    training batches."""
    state = fake_state(name)
    if not has_counters:
        state = {key: value for key, value in state.items() if not key.endswith(BATCH_COUNTER)}
    path = save(state)
    network = build_cnn_backbone(name, outputs=CUTS[name], weights=path)
    assert network.weights_source.kind == "file"
    for key, value in network.state_dict().items():
        if not key.endswith(BATCH_COUNTER):
            assert torch.equal(value, state[key]), key
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


FIRST_CONV = {
    "wide-resnet50-2-timm": "conv1.weight",
    "wide-resnet50-2": "conv1.weight",
    "efficientnet-b5": "_conv_stem.weight",
}


@pytest.mark.parametrize("name", NAMES)
def test_files_that_do_not_fit_are_refused_by_key(name, fake_state, save):
    first = FIRST_CONV[name]
    state = fake_state(name)
    state[first] = torch.zeros(8, 3, 3, 3)
    state["head.weight"] = torch.zeros(2)
    last_norm = [key for key in state if key.endswith("running_var")][3]
    del state[last_norm]
    with pytest.raises(WeightsError) as caught:
        build_cnn_backbone(name, outputs=CUTS[name], weights=save(state))
    message = str(caught.value)
    assert f"checkpoint.pth does not fit {name} up to" in message
    assert re.search(rf"'{re.escape(first)}' has shape \(8, 3, 3, 3\), expected \(\d+, 3,", message)
    assert f"key {last_norm!r} is missing" in message
    assert "key 'head.weight' (2,) is unknown" in message


def test_a_part_that_the_network_never_has_is_refused(fake_state, save):
    state = fake_state("wide-resnet50-2")
    state["layer5.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"'layer5\.0\.conv1\.weight' \(1,\) is unknown"):
        build_cnn_backbone("wide-resnet50-2", outputs=(1,), weights=save(state))


def test_the_file_of_another_network_is_refused(fake_state, save):
    with pytest.raises(WeightsError, match=r"'conv1\.weight' is missing"):
        build_cnn_backbone("wide-resnet50-2", outputs=(1,), weights=save(fake_state("dino-vitb8")))


@pytest.mark.parametrize("name", NAMES)
def test_fake_files_have_the_keys_of_the_network(name):
    """Those of the owners' networks are compared where these are installed."""
    last = max(CNN_BACKBONES[name].maps)
    network = build_cnn_backbone(name, outputs=(last,), weights="random")
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    official = official_shapes(name)
    assert own.items() <= official.items()
    prefixes = type(network).IGNORED_PREFIXES
    assert all(key.startswith(prefixes) for key in official.keys() - own.keys())


def test_cutting_equals_the_deeper_network_and_maps_come_in_the_order_asked_for():
    deeper = maps_of(with_known_weights("efficientnet-b5", (20, 8)))
    (cut,) = maps_of(with_known_weights("efficientnet-b5", (8,)))
    assert torch.equal(cut, deeper[1])
    assert [one.shape[1] for one in deeper] == [176, 64]


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(11)
    expected_draw = torch.rand(1)
    torch.manual_seed(11)
    arguments = {"outputs": (2,), "weights": "random"}
    first = build_cnn_backbone("efficientnet-b5", **arguments, seed=1)
    assert torch.equal(torch.rand(1), expected_draw)
    again = build_cnn_backbone("efficientnet-b5", **arguments, seed=1)
    other = build_cnn_backbone("efficientnet-b5", **arguments, seed=2)
    key = "_blocks.0._depthwise_conv.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert first.weights_source.detail == "seed 1"


@pytest.mark.parametrize(("name", "output"), [("wide-resnet50-2", 3), ("efficientnet-b5", 35)])
def test_random_networks_have_maps_of_moderate_spread(name, output):
    network = build_cnn_backbone(name, outputs=(output,), weights="random", image_size=96)
    (feature_map,) = maps_of(network)
    assert 0.005 < feature_map.std() < 20


def test_what_a_network_does_not_have_is_refused():
    with pytest.raises(InvalidInputError, match="no convolutional RGB backbone 'resnet18'; known"):
        build_cnn_backbone("resnet18", outputs=(1,), weights="random")
    with pytest.raises(InvalidInputError, match=r"its layers, 1 to 4"):
        build_cnn_backbone("wide-resnet50-2", outputs=(5,), weights="random")
    with pytest.raises(
        InvalidInputError, match="image_size is 100; for block 35 .* multiple of 32"
    ):
        build_cnn_backbone("efficientnet-b5", outputs=(35,), weights="random", image_size=100)
