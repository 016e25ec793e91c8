"""The convolutional networks as their owners publish them: keys and shapes of the official files,
weights for comparisons, and the owners' own networks where their packages are installed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

PACKAGES = {
    "wide-resnet50-2-timm": "timm",
    "wide-resnet50-2": "torchvision",
    "efficientnet-b5": "efficientnet_pytorch",
}
"""By backbone its owner's package."""

OUTPUTS = {
    "wide-resnet50-2-timm": (2, 3),
    "wide-resnet50-2": (1, 2, 3),
    "efficientnet-b5": (12, 35),
}
"""What is compared, by backbone. Block 12 of EfficientNet lies before the strides whose padding
depends on the size."""

IMAGE_SIZE = 96


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    keys = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{key}": (channels,) for key in keys} | {f"{name}.num_batches_tracked": ()}


def wide_resnet_shapes() -> dict[str, tuple[int, ...]]:
    """Of torchvision's and timm's file."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    inputs = 64
    for layer, (num_blocks, width) in enumerate(((3, 128), (4, 256), (6, 512), (3, 1024)), 1):
        for block in range(num_blocks):
            name = f"layer{layer}.{block}"
            shapes |= {
                f"{name}.conv1.weight": (width, inputs, 1, 1),
                **_norm(f"{name}.bn1", width),
                f"{name}.conv2.weight": (width, width, 3, 3),
                **_norm(f"{name}.bn2", width),
                f"{name}.conv3.weight": (2 * width, width, 1, 1),
                **_norm(f"{name}.bn3", 2 * width),
            }
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (2 * width, inputs, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", 2 * width)
            inputs = 2 * width
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def efficientnet_shapes() -> dict[str, tuple[int, ...]]:
    """Of efficientnet_pytorch's file of B5."""
    shapes = {"_conv_stem.weight": (48, 3, 3, 3), **_norm("_bn0", 48)}
    inputs, number = 48, 0
    stages = (
        (3, 3, 24),
        (5, 3, 40),
        (5, 5, 64),
        (7, 3, 128),
        (7, 5, 176),
        (9, 5, 304),
        (3, 3, 512),
    )
    for num_blocks, kernel, channels in stages:
        for _ in range(num_blocks):
            name, expands = f"_blocks.{number}", number > 2
            width = inputs * (6 if expands else 1)
            if expands:
                shapes[f"{name}._expand_conv.weight"] = (width, inputs, 1, 1)
                shapes |= _norm(f"{name}._bn0", width)
            shapes |= {
                f"{name}._depthwise_conv.weight": (width, 1, kernel, kernel),
                **_norm(f"{name}._bn1", width),
                f"{name}._se_reduce.weight": (inputs // 4, width, 1, 1),
                f"{name}._se_reduce.bias": (inputs // 4,),
                f"{name}._se_expand.weight": (width, inputs // 4, 1, 1),
                f"{name}._se_expand.bias": (width,),
                f"{name}._project_conv.weight": (channels, width, 1, 1),
                **_norm(f"{name}._bn2", channels),
            }
            inputs, number = channels, number + 1
    shapes |= {"_conv_head.weight": (2048, 512, 1, 1), **_norm("_bn1", 2048)}
    return shapes | {"_fc.weight": (1000, 2048), "_fc.bias": (1000,)}


def official_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shape by key of a backbone's official file."""
    return efficientnet_shapes() if name == "efficientnet-b5" else wide_resnet_shapes()


def known_weights(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of these keys and shapes, the same on every machine; all of them matter, and they
    keep the spread of a map."""
    return {key: torch.from_numpy(_known_tensor(name, key, shape)) for key, shape in shapes.items()}


def _known_tensor(name: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.array(1)
    random = np.random.RandomState(zlib.crc32(f"{name}/{key}".encode()))
    numbers = 2 * random.random_sample(shape) - 1  # of spread 0.58
    if len(shape) > 1:
        numbers *= np.sqrt(6 / np.prod(shape[1:]))
    elif key.endswith("running_var"):
        numbers = 1 + 0.5 * numbers
    elif key.endswith("weight"):
        is_last_of_block = ".bn3." in key or "._bn2." in key
        numbers = (0.3 if is_last_of_block else 1) * (1 + 0.3 * numbers)
    else:
        numbers *= 0.3
    return numbers.astype(np.float32)


def known_image() -> Tensor:
    """(1, 3, R, R) float32, the same on every machine."""
    numbers = np.random.RandomState(7).random_sample((1, 3, IMAGE_SIZE, IMAGE_SIZE))
    return torch.from_numpy((4 * numbers - 2).astype(np.float32))


def owners_maps(name: str) -> list[Tensor]:
    """The feature maps (1, C, H, W) that the owner's network gives of the known image with the
    known weights, whose keys and shapes are all of its own.

    Raises:
        ImportError: the owner's package is not installed.
    """
    package = import_module(PACKAGES[name])
    weights = known_weights(name, official_shapes(name))
    if name == "wide-resnet50-2-timm":
        network = package.create_model("wide_resnet50_2", pretrained=False)
    elif name == "wide-resnet50-2":
        network = package.models.wide_resnet50_2(weights=None)
    else:
        network = package.EfficientNet.from_name("efficientnet-b5")
    network.load_state_dict(weights, strict=True)
    caught: list[Tensor] = []
    for output in OUTPUTS[name]:
        part = f"_blocks.{output}" if name == "efficientnet-b5" else f"layer{output}"
        network.get_submodule(part).register_forward_hook(
            lambda *of_part: caught.append(of_part[2])
        )
    with torch.inference_mode():
        network.eval()(known_image())
    return caught


def sample(feature_map: Tensor) -> np.ndarray:
    """Some numbers of a map, of all channels and places."""
    return feature_map.flatten()[::23].numpy()
