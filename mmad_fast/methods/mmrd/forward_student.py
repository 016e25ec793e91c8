"""The student of forward distillation: an untrained network like the teacher, which reads pictures.

Source: MMRD, "Preliminaries" and Table 2c (FD, MMFD). How its modulation is applied to this
paradigm stands in a supplement that is not at hand; docs/decisions.md has what is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmad_fast.backbones.table import get_cnn_spec
from mmad_fast.backbones.wide_resnet import WideResNet
from mmad_fast.methods.mmrd.modulation import Modulation
from mmad_fast.methods.mmrd.networks import initialise
from mmad_fast.methods.mmrd.student import Comparison, Levels, Student

if TYPE_CHECKING:
    from mmad_fast.methods.mmrd.options import MmrdOptions


class ForwardStudent(Student):
    """It makes of each picture what the teacher makes of it, and fuses these as the teacher does.

    Of several pictures all go through it as one batch, so that its BatchNorm statistics, which it
    has once, are in training those that it has afterwards.
    """

    def __init__(self, options: MmrdOptions) -> None:
        super().__init__()
        self.network = WideResNet(
            get_cnn_spec(options.rgb_backbone),
            outputs=options.levels,
            image_size=options.rgb_size,
            inner_width=options.student_width,
        )
        self.modulation = nn.ModuleList(
            Modulation(options.fusion, channels, reduction=options.attention_reduction)
            for channels, *_ in options.level_shapes
        )
        initialise(self)

    def forward(self, levels: Levels, pictures: Sequence[Tensor]) -> list[Comparison]:
        """One comparison.

        Args:
            levels: The teacher's maps (B, C, H, W) by modality; empty where the targets, which
                then are none, are not needed.
            pictures: (B, 3, R, R) by modality.
        """
        batches = self.network(torch.cat(list(pictures)))
        made = [maps.chunk(len(pictures)) for maps in batches]  # [level][modality]
        restored = tuple(fuse(maps) for fuse, maps in zip(self.modulation, made, strict=True))
        targets = tuple(
            fuse(maps)
            for fuse, maps in zip(self.modulation, zip(*levels, strict=True), strict=bool(levels))
        )
        return [Comparison(targets, restored)]
