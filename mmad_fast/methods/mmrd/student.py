"""The students of RD4AD and MMRD, and `build_student` for all of the family.

A student reads the teacher's maps as levels[modality][level], RGB first, shallow to deep, and gives
comparisons: the maps it was to restore and what it made of them.

Source: MMRD eq. 4-9; method facts 8.1 and 8.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_fast.methods.mmrd.modulation import ChannelAttention, Modulation
from mmad_fast.methods.mmrd.networks import (
    Decoder,
    OneClassBottleneck,
    flattened_distance,
    initialise,
)

if TYPE_CHECKING:
    from mmad_fast.methods.mmrd.options import MmrdOptions

Levels = Sequence[Sequence[Tensor]]

SQUARE_MINIMUM = 1e-6
"""Of a place's mean square, by whose root its features are divided; above 0 in float16 too."""


class Comparison(NamedTuple):
    """What a student was to restore, and what it did: maps (B, C, H, W), shallow to deep."""

    targets: tuple[Tensor, ...]
    restored: tuple[Tensor, ...]


class Student(nn.Module):
    """A student, or several. `forward` gives the comparisons."""

    def loss(self, *inputs: Any) -> Tensor:
        """() what the training minimises, of what `forward` reads."""
        return self.distillation_loss(*inputs)

    def distillation_loss(self, *inputs: Any) -> Tensor:
        """() the sum of the comparisons' flattened distances, of what `forward` reads."""
        comparisons = self(*inputs)
        return torch.stack([flattened_distance(*one) for one in comparisons]).sum()


class ReverseStudent(Student):
    """RD4AD's student: it restores the maps of one modality from a small embedding of them."""

    def __init__(self, options: MmrdOptions) -> None:
        super().__init__()
        shapes, width = options.level_shapes, options.student_width
        self.bn = OneClassBottleneck(shapes, student_width=width)
        self.decoder = Decoder(shapes, student_width=width, is_signed=options.is_transformer)
        initialise(self)

    def forward(self, levels: Levels) -> list[Comparison]:
        """One comparison, with the teacher's own maps."""
        (maps,) = levels
        return [Comparison(tuple(maps), self.decoder(self.bn(maps)))]


class Prototypes(nn.Module):
    """What the nominal maps of one modality and level are made of: N rows (N, C) that are learned.

    Source: MMRD eq. 4-6.
    """

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(count, channels))

    def forward(self, features: Tensor) -> Tensor:
        """The prior (B, C, H, W): at each place the mean of the prototypes, weighted by how like
        the features (B, C, H, W) each is there."""
        rows = F.normalize(self.rows, dim=1)
        # By the mean of the squares, since their sum may be beyond float16.
        scale = features.square().mean(dim=1, keepdim=True).clamp_min(SQUARE_MINIMUM).rsqrt()
        rows = rows / math.sqrt(features.shape[1])
        cosines = F.conv2d(features * scale, rows[:, :, None, None])
        weights = torch.softmax(cosines, dim=1)  # (B, N, H, W)
        return F.conv2d(weights, self.rows.T[:, :, None, None])

    def loss(self, features: Tensor) -> Tensor:
        """() mean squared difference of features and prior."""
        return F.mse_loss(self(features).float(), features.float())


class Interaction(nn.Module):
    """One level's priors of the modalities as one.

    Source: MMRD eq. 7. Of several auxiliary modalities the spatial attentions are added (ours).
    """

    def __init__(self, channels: int, num_auxiliary: int, reduction: int) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(num_auxiliary))

    def forward(self, priors: Sequence[Tensor]) -> Tensor:
        """(B, C, H, W) of the priors (B, C, H, W), RGB's first."""
        rgb, auxiliary = priors[0], priors[1:]
        enhanced = self.channel(rgb) * rgb + rgb
        for convolution, one in zip(self.spatial, auxiliary, strict=True):
            attention = torch.sigmoid(convolution(one.amax(dim=1, keepdim=True)))
            rgb = rgb + attention * enhanced
        return rgb


class MmrdStudent(Student):
    """MMRD's student: it restores the fused maps, helped by priors from each modality's maps.

    The deepest stage reads the embedding alone, so that the prior of the shallowest level goes into
    no stage (eq. 8): its prototypes are learned, as eq. 9 has it, and not read.
    """

    def __init__(self, options: MmrdOptions) -> None:
        super().__init__()
        shapes, width = options.level_shapes, options.student_width
        channels = [shape[0] for shape in shapes]
        num_modalities = len(options.modality_names)
        self.prior_weight = options.prior_weight
        self.reads_fused = options.bottleneck_input == "fused"
        self.modulation = nn.ModuleList(
            Modulation(options.fusion, count, reduction=options.attention_reduction)
            for count in channels
        )
        self.prototypes = nn.ModuleList(
            nn.ModuleList(
                Prototypes(count, wide) if count else nn.Identity()
                for count, wide in zip(options.prototypes, channels, strict=True)
            )
            for _ in range(num_modalities)
        )
        interacts = options.interaction and num_modalities > 1
        self.interaction = nn.ModuleList(
            Interaction(wide, num_modalities - 1, options.attention_reduction)
            if count and interacts
            else nn.Identity()
            for count, wide in zip(options.prototypes[1:], channels[1:], strict=True)
        )
        self.bn = OneClassBottleneck(shapes, student_width=width)
        self.decoder = Decoder(
            shapes,
            extra_channels=[
                wide if count else 0
                for wide, count in zip(channels[:0:-1], options.prototypes[:0:-1], strict=True)
            ],
            student_width=width,
            is_signed=options.is_transformer,
        )
        initialise(self)

    def forward(self, levels: Levels) -> list[Comparison]:
        """One comparison, with the fused maps."""
        targets = tuple(
            fuse([maps[level] for maps in levels]) for level, fuse in enumerate(self.modulation)
        )
        embedding = self.bn(targets if self.reads_fused else levels[0])
        third = self.decoder.stage(1, embedding)
        second = self.decoder.stage(2, self._with_prior(third, levels, 2))
        first = self.decoder.stage(3, self._with_prior(second, levels, 1))
        return [Comparison(targets, (first, second, third))]

    def loss(self, *inputs: Levels) -> Tensor:
        """() eq. 9."""
        (levels,) = inputs
        loss = self.distillation_loss(levels)
        for _, prototypes, features in self._learned(levels):
            loss = loss + self.prior_weight * prototypes.loss(features)
        return loss

    @torch.no_grad()
    def initialise_prototypes(self, levels: Levels) -> None:
        """Takes as prototypes the rows of randomly chosen places of maps (B, C, H, W)."""
        for _, prototypes, features in self._learned(levels):
            rows = features.float().movedim(1, -1).flatten(0, 2)
            count = len(prototypes.rows)
            # With repetition only where there are fewer places than prototypes.
            order = torch.randperm(len(rows)).repeat(-(-count // len(rows)))[:count]
            prototypes.rows.copy_(rows[order.to(rows.device)])

    def _learned(self, levels: Levels) -> Iterator[tuple[int, Prototypes, Tensor]]:
        """(level, prototypes, maps) of each modality and level that has prototypes."""
        for of_modality, maps in zip(self.prototypes, levels, strict=True):
            assert isinstance(of_modality, nn.ModuleList)
            for level, (prototypes, features) in enumerate(zip(of_modality, maps, strict=True)):
                if isinstance(prototypes, Prototypes):
                    yield level, prototypes, features

    def _with_prior(self, restored: Tensor, levels: Levels, level: int) -> Tensor:
        """[F^S; Fbar] of a level; F^S alone where it has no prototypes."""
        priors = [
            prototypes(features)
            for of_level, prototypes, features in self._learned(levels)
            if of_level == level
        ]
        if not priors:
            return restored
        interaction = self.interaction[level - 1]
        prior = (
            interaction(priors)
            if isinstance(interaction, Interaction)
            else torch.stack(priors).sum(dim=0)
        )
        return torch.cat([restored, prior], dim=1)


def build_student(options: MmrdOptions) -> Student:
    """The untrained students that the options name; their initial values are torch's random
    ones."""
    # Here, since both build on this module.
    from mmad_fast.methods.mmrd.forward_student import ForwardStudent
    from mmad_fast.methods.mmrd.trd_student import TrdStudents

    kinds: dict[str, type[Student]] = {
        "mmrd": MmrdStudent,
        "trd": TrdStudents,
        "rd": ReverseStudent,
        "forward": ForwardStudent,
    }
    return kinds[options.distillation](options)
