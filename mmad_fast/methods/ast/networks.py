"""The networks of AST in torch, with the key names of the published checkpoints.

Source: AST section 3; method facts 9.2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

POSITION_CHANNELS = 32
KERNEL_SIZES = (3, 3, 3, 5)
"""Of the convolutions of each coupling block."""
CLAMP = 1.9
"""Bounds the logarithms of the couplings' factors, to about +-1.9."""
ATAN_FACTOR = 0.636
OUTPUT_LIMIT = 1e6
FIRST_BLOCK = 3
"""Place of the first coupling block in the published module list: after two inputs and a
permutation; each following block stands behind a permutation of its own."""


def position_encoding(side: int) -> Tensor:
    """(32, side, side) sines and cosines of the column, then of the row, at eight frequencies each.

    Source: method facts 9.2 (as in CFlow).
    """
    half = POSITION_CHANNELS // 2
    frequencies = torch.exp(torch.arange(0.0, half, 2) * -(np.log(1e4) / half))  # (8,)
    angles = torch.arange(float(side))[:, None] * frequencies  # (side, 8)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).T  # (16, side)
    columns = waves[:, None, :].expand(half, side, side)
    rows = waves[:, :, None].expand(half, side, side)
    return torch.cat([columns, rows])


def channel_permutations(channels: int, count: int = len(KERNEL_SIZES)) -> NDArray[np.int64]:
    """(count, C): the fixed order of the channels before each coupling block; the published code
    draws that of block k with NumPy's seed k."""
    orders = [np.random.RandomState(seed).permutation(channels) for seed in range(count)]
    return np.stack(orders).astype(np.int64)


class CouplingSubnet(nn.Module):
    """Two convolutions that repeat their border, times a learned factor."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        convolution = partial(
            nn.Conv2d,
            kernel_size=kernel_size,
            padding=kernel_size // 2,
            padding_mode="replicate",
        )
        self.gamma = nn.Parameter(torch.zeros(1))
        self.conv1: nn.Conv2d = convolution(inputs, hidden)
        self.conv2: nn.Conv2d = convolution(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, outputs, H, W) from (B, inputs, H, W)."""
        return self.conv2(F.relu(self.conv1(x))) * self.gamma


class Coupling(nn.Module):
    """One invertible block: either half is scaled and shifted by what the other says."""

    def __init__(self, channels: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        self.first, self.second = channels // 2, channels - channels // 2
        self.s1 = CouplingSubnet(
            self.first + POSITION_CHANNELS, hidden, 2 * self.second, kernel_size
        )
        self.s2 = CouplingSubnet(
            self.second + POSITION_CHANNELS, hidden, 2 * self.first, kernel_size
        )

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """((B, C, H, W), logarithm of the Jacobian's determinant per pixel (B, H, W))."""
        first, second = x.split([self.first, self.second], dim=1)
        log_factors2, shift2 = self.s2(torch.cat([second, positions], 1)).chunk(2, dim=1)
        log_factors2 = _bounded(log_factors2)
        first = log_factors2.exp() * first + shift2
        log_factors1, shift1 = self.s1(torch.cat([first, positions], 1)).chunk(2, dim=1)
        log_factors1 = _bounded(log_factors1)
        second = log_factors1.exp() * second + shift1
        output = torch.cat([first, second], 1).clamp(-OUTPUT_LIMIT, OUTPUT_LIMIT)
        return output, log_factors1.sum(1) + log_factors2.sum(1)


def _bounded(log_factors: Tensor) -> Tensor:
    return CLAMP * ATAN_FACTOR * torch.atan(log_factors / CLAMP)


class Teacher(nn.Module):
    """The normalising flow: features to a standard normal distribution."""

    permutations: Tensor

    def __init__(self, channels: int, hidden: int, permutations: NDArray[np.int64]) -> None:
        """Takes C and the order (blocks, C) of the channels before each block."""
        super().__init__()
        self.register_buffer("permutations", torch.from_numpy(permutations), persistent=False)
        self.module_list = nn.ModuleDict(
            {
                str(FIRST_BLOCK + 2 * block): Coupling(channels, hidden, kernel_size)
                for block, kernel_size in enumerate(KERNEL_SIZES)
            }
        )

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(z (B, C, H, W), logarithm of the Jacobian's determinant per pixel (B, H, W)), from
        features (B, C, H, W) and the encoding of positions (B, 32, H, W)."""
        logarithms = []
        for order, block in zip(self.permutations, self.module_list.values(), strict=True):
            x, logarithm = block(x[:, order], positions)
            logarithms.append(logarithm)
        return x, torch.stack(logarithms).sum(0)


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm and LeakyReLU each, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.l1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.l2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) from (B, C, H, W)."""
        hidden = F.leaky_relu(self.bn1(self.l1(x)))
        return x + F.leaky_relu(self.bn2(self.l2(hidden)))


class Student(nn.Module):
    """The convolutional network that predicts the teacher's answer."""

    def __init__(self, channels: int, hidden: int, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels + POSITION_CHANNELS, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)
        self.res = nn.ModuleList(ResidualBlock(hidden) for _ in range(num_blocks))
        self.gamma = nn.Parameter(torch.zeros(1))  # of the published files; nothing reads it

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, C, H, W) the predicted z, from features (B, C, H, W) and positions (B, 32, H, W)."""
        # The published code gives the positions first.
        hidden = F.leaky_relu(self.conv1(torch.cat([positions, x], 1)))
        for block in self.res:
            hidden = block(hidden)
        return self.conv2(hidden)


class SquaredDifference(nn.Module):
    """Teacher and student as one network for inference: what the run half executes.

    The same function with less to do: BatchNorm and the couplings' factors are in the convolutions'
    weights, the division inside the arc tangent, too, the Jacobian is left out.
    """

    positions: Tensor
    order: Tensor

    def __init__(self, teacher: Teacher, student: Student, side: int) -> None:
        """Takes trained networks, which stay as they are, and the side of their maps."""
        super().__init__()
        self.register_buffer("positions", position_encoding(side)[None])
        self.register_buffer("order", teacher.permutations)
        self.couplings = nn.ModuleList(
            _folded_coupling(block) for block in teacher.module_list.values()
        )
        self.student = _folded_student(student)

    def forward(self, features: Tensor) -> Tensor:
        """(1, H, W) mean over the channels of the squared difference, from (1, C, H, W)."""
        z = features
        for order, coupling in zip(self.order, self.couplings, strict=True):
            z = coupling(z.index_select(1, order), self.positions)
        return (z - self.student(features, self.positions)).square().mean(1)


class _FoldedCoupling(nn.Module):
    def __init__(self, s1: nn.Module, s2: nn.Module, first: int, second: int) -> None:
        super().__init__()
        self.s1, self.s2 = s1, s2
        self.first, self.second = first, second

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        first, second = x.split([self.first, self.second], dim=1)
        first = _couple(first, self.s2(torch.cat([second, positions], 1)))
        second = _couple(second, self.s1(torch.cat([first, positions], 1)))
        return torch.cat([first, second], 1).clamp(-OUTPUT_LIMIT, OUTPUT_LIMIT)


def _couple(half: Tensor, said: Tensor) -> Tensor:
    angles, shift = said.chunk(2, dim=1)
    return (CLAMP * ATAN_FACTOR * torch.atan(angles)).exp() * half + shift


class _Padded(nn.Module):
    """A convolution whose border is repeated before it, as a step of its own."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.margin = convolution.kernel_size[0] // 2
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (self.margin,) * 4, mode="replicate"), self.weight, self.bias)


@torch.no_grad()
def _folded_coupling(block: nn.Module) -> nn.Module:
    assert isinstance(block, Coupling)
    folded = []
    for subnet in (block.s1, block.s2):
        copied = copy.deepcopy(subnet)
        factors = copied.gamma.expand(len(copied.conv2.weight)).clone()
        factors[: len(factors) // 2] /= CLAMP
        copied.conv2.weight.mul_(factors[:, None, None, None])
        assert copied.conv2.bias is not None
        copied.conv2.bias.mul_(factors)
        folded.append(nn.Sequential(_Padded(copied.conv1), nn.ReLU(), _Padded(copied.conv2)))
    return _FoldedCoupling(folded[0], folded[1], block.first, block.second).eval()


def _folded_student(student: Student) -> Student:
    folded = copy.deepcopy(student).eval()
    for block in folded.res:
        for convolution, norm in (("l1", "bn1"), ("l2", "bn2")):
            fused = nn.utils.fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm))
            setattr(block, convolution, fused)
            setattr(block, norm, nn.Identity())
    return folded


def build_networks(
    channels: int,
    *,
    teacher_channels: int,
    student_channels: int,
    student_blocks: int,
    permutations: Sequence[Sequence[int]] | NDArray[np.int64] | None = None,
) -> tuple[Teacher, Student]:
    """Untrained networks for features of C channels.

    Args:
        channels: C, even.
        permutations: (4, C) order of the channels before each block; None: the published ones.
    """
    orders = channel_permutations(channels) if permutations is None else np.asarray(permutations)
    teacher = Teacher(channels, teacher_channels, orders.astype(np.int64))
    return teacher, Student(channels, student_channels, student_blocks)
