"""The crossmodal mapping network as the GPU kernels read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.pixel_mapping.network import MappingNetwork

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "float16", "bfloat16")
"""Of weights and activations. Products are always summed in float32."""

DEPTH_MULTIPLE = 64
"""Every width that a product runs along is padded to it: the kernels' loops have no remainder and
every row is aligned to 16 bytes. Every BLOCK_K and BLOCK_C divides it."""

OUTPUT_MULTIPLE = 128
"""Every number of outputs is padded to it. Every BLOCK_N divides it."""


@dataclass(frozen=True, eq=False)
class DeviceMappingNetwork:
    """A mapping network in device memory, padded with zeros, its last layer rotated.

    A padded hidden unit has weight 0 and bias 0, so it is gelu(0) = 0: padding changes no value.
    H: widest hidden layer, padded to DEPTH_MULTIPLE; R: the same, padded to OUTPUT_MULTIPLE; I, D:
    in and out channels, padded to DEPTH_MULTIPLE; O: out channels, padded to OUTPUT_MULTIPLE.

    Attributes:
        in_channels: Width of the source features.
        out_channels: Width of the target features.
        precision: One of PRECISIONS.
        first_weight: (R, I) of the precision: multiplies the tokens.
        rotation: (O, D) of the precision: multiplies the targets.
        middle_weights: (L - 2, R, H) of the precision, 0 where the network has 2 layers.
        last_weight: (O, H) of the precision, exactly 0 below the diagonal.
        biases: (L - 1, R) float32, of all layers but the last.
        last_bias: (O,) float32.
    """

    in_channels: int
    out_channels: int
    precision: str
    first_weight: torch.Tensor
    rotation: torch.Tensor
    middle_weights: torch.Tensor
    last_weight: torch.Tensor
    biases: torch.Tensor
    last_bias: torch.Tensor


def device_network(
    network: MappingNetwork, device: torch.device | str, precision: str = "float32"
) -> DeviceMappingNetwork:
    """The network, packed on the host and copied to the device.

    Args:
        network: The plain layers.
        device: A CUDA device; "cpu" where Triton is interpreted.
        precision: One of PRECISIONS. "float16" and "bfloat16" round weights and activations.

    Raises:
        InvalidInputError: another precision.
    """
    import torch

    if precision not in PRECISIONS:
        raise InvalidInputError(
            f"precision is {precision!r}; it must be one of {', '.join(map(repr, PRECISIONS))}"
        )
    weight_type = getattr(torch, precision)

    def on_device(array: NDArray[np.float32], dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(array).to(device=device, dtype=dtype)

    rotation, last_weight, last_bias = network.rotated
    hidden = max(len(bias) for bias in network.biases[:-1])
    rows, depth = _round_up(hidden, OUTPUT_MULTIPLE), _round_up(hidden, DEPTH_MULTIPLE)
    out = _round_up(network.out_channels, OUTPUT_MULTIPLE)
    middle = np.zeros((len(network.weights) - 2, rows, depth), np.float32)
    for padded, weight in zip(middle, network.weights[1:-1], strict=True):
        padded[: weight.shape[0], : weight.shape[1]] = weight
    biases = np.zeros((len(network.biases) - 1, rows), np.float32)
    for padded, bias in zip(biases, network.biases[:-1], strict=True):
        padded[: len(bias)] = bias
    in_depth = _round_up(network.in_channels, DEPTH_MULTIPLE)
    out_depth = _round_up(network.out_channels, DEPTH_MULTIPLE)
    return DeviceMappingNetwork(
        network.in_channels,
        network.out_channels,
        precision,
        first_weight=on_device(_padded(network.weights[0], rows, in_depth), weight_type),
        rotation=on_device(_padded(rotation, out, out_depth), weight_type),
        middle_weights=on_device(middle, weight_type),
        last_weight=on_device(_padded(last_weight, out, depth), weight_type),
        biases=on_device(biases, torch.float32),
        last_bias=on_device(np.pad(last_bias, (0, out - len(last_bias))), torch.float32),
    )


def _padded(matrix: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    return np.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
