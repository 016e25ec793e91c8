"""The convolutional networks WideResNet50-2 and EfficientNet-B5, cut after a part.

Source: method facts, sections 9.1 and 9.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mmad_fast.backbones.checkpoint import fit_to_network, is_block_beyond, read_checkpoint
from mmad_fast.backbones.convolutional import ConvolutionalNetwork
from mmad_fast.backbones.efficientnet import EfficientNet
from mmad_fast.backbones.table import CnnSpec, get_cnn_spec
from mmad_fast.backbones.weights import resolve_weights
from mmad_fast.backbones.wide_resnet import WideResNet

NETWORKS: dict[str, type[ConvolutionalNetwork]] = {"layer": WideResNet, "block": EfficientNet}
"""By what their parts are called."""

BATCH_COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that only training reads; older official files lack it."""


def build_cnn_backbone(
    name: str,
    *,
    outputs: Sequence[int],
    weights: str | Path = "auto",
    image_size: int | None = None,
    seed: int = 0,
    offline: bool = False,
) -> ConvolutionalNetwork:
    """A convolutional network cut after the last part that is used, frozen, in evaluation mode.

    It maps images (B, 3, R, R) float32 to one feature map (B, C, H, W) float32 per output.

    Args:
        name: One of CNN_BACKBONES.
        outputs: Numbers of the parts whose feature maps are wanted: layers 1-4 of a wide residual
            network, blocks 0-38 of EfficientNet-B5. The maps are in this order.
        weights: "auto" (the user's cache, else the owner's download), "random" (seeded), or the
            path of the official .pth or a .safetensors file with the official keys.
        image_size: R in pixels, a multiple of the last output's stride; None for that of the
            published detectors.
        seed: Of random weights.
        offline: With "auto": look into the cache only.

    Raises:
        InvalidInputError: unknown name, or outputs or an image_size that it cannot have.
        WeightsError: the weights are missing, unreadable, do not fit, or cannot be downloaded.
    """
    spec = get_cnn_spec(name)
    size = spec.image_size if image_size is None else image_size
    spec.check_outputs(outputs, size)
    source = resolve_weights(name, weights, offline=offline, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[spec.part](spec, outputs=outputs, image_size=size)
        if source.path is None:
            _initialise(network)
    if source.path is not None:
        _load(network, spec, source.path)
    network.weights_source = source
    return network.eval().requires_grad_(False)


def _load(network: ConvolutionalNetwork, spec: CnnSpec, path: Path) -> None:
    own = network.state_dict()
    expected = {
        key: tuple(value.shape) for key, value in own.items() if not key.endswith(BATCH_COUNTER)
    }

    def is_ignored(key: str) -> bool:
        beyond = is_block_beyond(
            key, network.CUT_PATTERN, max(network.outputs) + 1, max(spec.maps) + 1
        )
        return beyond or key in own or key.startswith(network.IGNORED_PREFIXES)

    last = f"{spec.part} {max(network.outputs)}"
    state = fit_to_network(
        read_checkpoint(path),
        expected,
        is_ignored=is_ignored,
        network=f"{spec.name} up to {last}",
        path=path,
    )
    network.load_state_dict({**own, **state}, strict=True)


def _initialise(network: ConvolutionalNetwork) -> None:
    """Initial values that keep the spread of a map from layer to layer; biases 0; norms 1, 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
