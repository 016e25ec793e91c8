"""The mapping networks: the published sizes and key names."""

from __future__ import annotations

import pytest
import torch

from mmad_fast.methods.cfm.networks import (
    FeatureProjectionMLP,
    FeatureProjectionMLPBig,
    from_tensors,
    to_tensors,
)


def num_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_published_sizes():
    to_point, to_rgb = FeatureProjectionMLP(768, 1152), FeatureProjectionMLP(1152, 768)
    assert num_parameters(to_point) + num_parameters(to_rgb) == 5_535_360
    assert to_point.input.weight.shape == (960, 768)
    tiny = num_parameters(FeatureProjectionMLP(768, 384)) + num_parameters(
        FeatureProjectionMLP(384, 768)
    )
    assert tiny == 1_994_112


def test_keys_are_those_of_the_published_checkpoints():
    keys = [
        f"{layer}.{kind}"
        for layer in ("input", "projection", "output")
        for kind in ("weight", "bias")
    ]
    assert list(FeatureProjectionMLP(6, 4).state_dict()) == keys
    big = {key.split(".")[0] for key in FeatureProjectionMLPBig(6, 4).state_dict()}
    assert big == {"input", "output", *(f"projection_{letter}" for letter in "abcde")}


@pytest.mark.parametrize("network_type", [FeatureProjectionMLP, FeatureProjectionMLPBig])
def test_tensors_give_the_same_network(network_type: type[FeatureProjectionMLP]):
    network = network_type(6, 4)
    tensors = {"other.input.weight": to_tensors(network_type(2, 2), "")["input.weight"]}
    tensors.update(to_tensors(network, "point_to_rgb."))
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    again = from_tensors(tensors, "point_to_rgb.")
    torch.testing.assert_close(again(features), network(features), rtol=0, atol=0)


def test_forward_is_linear_layers_with_exact_gelu_between():
    network = FeatureProjectionMLP(6, 4)
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    expected = network.output(gelu(network.projection(gelu(network.input(features)))))
    torch.testing.assert_close(network(features), expected)
