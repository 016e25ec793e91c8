"""TRD's students: one of each modality, which the other's maps assist.

A student restores its modality's maps four times: by the decoder alone, by the filter and by the
amplifier, which read the other modality's maps, and by decoder and amplifier together, which is
compared. Gradients go through all of them, as in the public code since 2025-05-24.

Source: method facts 8.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_fast.methods.mmrd.networks import (
    Decoder,
    Shapes,
    embedding_layers,
    flattened_distance,
    initialise,
    ratios,
    scaled,
)
from mmad_fast.methods.mmrd.student import Comparison, Levels, Student

if TYPE_CHECKING:
    from mmad_fast.methods.mmrd.options import MmrdOptions

LEVEL_NAMES = ("a", "b", "c")
"""Of the levels, shallow to deep, in the published keys."""


class Filter(nn.Module):
    """The other modality's maps, level by level squeezed to the embedding's size and back, as maps
    of this one."""

    def __init__(self, shapes: Shapes, *, student_width: float, is_signed: bool) -> None:
        super().__init__()
        channels = [shape[0] for shape in shapes]
        steps = (*ratios(shapes), 2)
        inner = [scaled(count, student_width) for count in (*channels[1:], 2 * channels[-1])]
        for level, name in enumerate(LEVEL_NAMES):
            # The first reads, and the last gives, maps of the teacher.
            path = [channels[level], *inner[level:]]
            scales = steps[level:]
            layers = [
                layer
                for reads, gives, scale in zip(path, path[1:], scales, strict=False)
                for layer in _resized(reads, gives, scale, is_larger=False)
            ]
            layers += [
                layer
                for reads, gives, scale in zip(path[::-1], path[-2::-1], scales[::-1], strict=False)
                for layer in _resized(reads, gives, scale, is_larger=True)
            ]
            _add_layers(self, name, layers, is_signed)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The maps, of the shapes of the levels."""
        return _by_level(self, levels)


class Amplifier(nn.Module):
    """The other modality's maps, level by level and of their size, as maps of this one."""

    def __init__(self, shapes: Shapes, *, student_width: float, is_signed: bool) -> None:
        super().__init__()
        for (channels, *_), name in zip(shapes, LEVEL_NAMES, strict=True):
            middle, wide = (scaled(count, student_width) for count in (channels, 2 * channels))
            layers = [
                *_normed(nn.Conv2d(channels, middle, 3, padding=1, bias=False)),
                *_normed(nn.Conv2d(middle, wide, 1, bias=False)),
                *_normed(nn.Conv2d(wide, channels, 1, bias=False)),
            ]
            _add_layers(self, name, layers, is_signed)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The maps, of the shapes of the levels."""
        return _by_level(self, levels)


class FusingBottleneck(nn.Module):
    """The one-class bottleneck of a modality's maps, each beside what the filter made of the
    other's."""

    def __init__(self, shapes: Shapes, *, student_width: float) -> None:
        super().__init__()
        (first, *_), (second, *_), (third, *_) = shapes
        inner = scaled(third, student_width)
        to_second, to_third = ratios(shapes)
        self.conv1 = nn.Conv2d(2 * first, inner, 3, to_second, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, to_third, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(2 * second, inner, 3, to_third, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv4 = nn.Conv2d(2 * third, inner, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(inner)
        self.bn_layer = embedding_layers(3 * inner, inner)

    def forward(self, levels: Sequence[Tensor], filtered: Sequence[Tensor]) -> Tensor:
        """(B, 2 C3, H3 / 2, W3 / 2)."""
        first, second, third = (
            torch.cat(pair, dim=1) for pair in zip(levels, filtered, strict=True)
        )
        first = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(first))))))
        second = F.relu(self.bn3(self.conv3(second)))
        third = F.relu(self.bn4(self.conv4(third)))
        embedding: Tensor = self.bn_layer(torch.cat([first, second, third], dim=1))
        return embedding


class GatedDecoder(Decoder):
    """The decoder whose stages read what the amplifier was added to, by learned shares."""

    def __init__(self, shapes: Shapes, *, student_width: float, is_signed: bool) -> None:
        super().__init__(shapes, student_width=student_width, is_signed=is_signed)
        self.w_a, self.w_b, self.w_c = (nn.Parameter(torch.ones(2)) for _ in LEVEL_NAMES)

    def restore(
        self, embedding: Tensor, amplified: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(maps of the decoder alone, maps of both), each shallow to deep.

        Args:
            embedding: (B, 2 C3, H3 / 2, W3 / 2).
            amplified: The amplifier's maps.
        """
        alone, both = [], []
        features = embedding
        # Of the published names a is the deepest stage here.
        for number, (gate, maps) in enumerate(
            zip((self.w_a, self.w_b, self.w_c), reversed(amplified), strict=True), start=1
        ):
            alone.append(self.stage(number, features))
            shares = torch.softmax(gate, dim=0)
            features = shares[0] * alone[-1] + shares[1] * maps
            both.append(features)
        return tuple(alone[::-1]), tuple(both[::-1])


class TrdStudent(nn.Module):
    """The student of one modality."""

    def __init__(self, options: MmrdOptions) -> None:
        super().__init__()
        shapes, width = options.level_shapes, options.student_width
        is_signed = options.is_transformer
        self.projector_filter = Filter(shapes, student_width=width, is_signed=is_signed)
        self.projector_amply = Amplifier(shapes, student_width=width, is_signed=is_signed)
        self.bn = FusingBottleneck(shapes, student_width=width)
        self.decoder = GatedDecoder(shapes, student_width=width, is_signed=is_signed)

    def forward(
        self, maps: Sequence[Tensor], assisting: Sequence[Tensor]
    ) -> Iterator[Sequence[Tensor]]:
        """The restored maps, shallow to deep: of decoder and amplifier, of the decoder alone, of
        the filter, and of the amplifier.

        Args:
            maps: Of the teacher, of this modality.
            assisting: Of the other.
        """
        filtered = self.projector_filter(assisting)
        amplified = self.projector_amply(assisting)
        alone, both = self.decoder.restore(self.bn(maps, filtered), amplified)
        return iter((both, alone, filtered, amplified))


class TrdStudents(Student):
    """The students of both modalities, which share nothing."""

    def __init__(self, options: MmrdOptions) -> None:
        super().__init__()
        self.students = nn.ModuleDict(
            {name: TrdStudent(options) for name in options.modality_names}
        )
        initialise(self)

    def forward(self, levels: Levels) -> list[Comparison]:
        """A comparison per modality, with the teacher's own maps."""
        return [
            Comparison(tuple(maps), tuple(next(restored))) for maps, restored in self._all(levels)
        ]

    def loss(self, levels: Levels) -> Tensor:
        """() the sum over both students of all four distances."""
        distances = [
            flattened_distance(maps, one)
            for maps, restored in self._all(levels)
            for one in restored
        ]
        return torch.stack(distances).sum()

    def _all(self, levels: Levels) -> Iterator[tuple[Sequence[Tensor], Iterator[Sequence[Tensor]]]]:
        """(the teacher's maps, everything that restores them) of each modality."""
        for student, maps, assisting in zip(
            self.students.values(), levels, reversed(levels), strict=True
        ):
            yield maps, student(maps, assisting)


def _resized(reads: int, gives: int, scale: int, *, is_larger: bool) -> list[nn.Module]:
    """Convolution, BatchNorm and ReLU that change the size by a factor of 2, or of 1."""
    if scale == 1:
        return _normed(nn.Conv2d(reads, gives, 1, bias=False))
    kind = nn.ConvTranspose2d if is_larger else nn.Conv2d
    return _normed(kind(reads, gives, scale, scale, bias=False))


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]


def _add_layers(module: nn.Module, name: str, layers: list[nn.Module], is_signed: bool) -> None:
    """Adds a level's layers under the published name; without the last ReLU where the teacher's
    maps may be negative."""
    module.add_module(f"conv_{name}", nn.Sequential(*layers[: -1 if is_signed else None]))


def _by_level(module: nn.Module, levels: Sequence[Tensor]) -> list[Tensor]:
    return [
        module.get_submodule(f"conv_{name}")(maps)
        for name, maps in zip(LEVEL_NAMES, levels, strict=True)
    ]
