"""Options of the branch; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from mmad_fast.backbones.table import RGB_BACKBONES, get_rgb_spec
from mmad_fast.methods.branches.branch import GraphOptions
from mmad_fast.methods.options import constant, option

Options = TypeVar("Options", bound="VitTokenOptions")


@dataclass(frozen=True)
class VitTokenOptions(GraphOptions):
    """Which vision transformer, and how much of it.

    Attributes:
        rgb_backbone: Name in mmad_fast.backbones.
        rgb_layers: Transformer blocks that are kept.
        token_grid: Side of the token grid; T = token_grid ** 2.
    """

    rgb_backbone: str = option(
        "dino-vitb8", "Vision transformer of the RGB tokens.", choices=tuple(RGB_BACKBONES),
        in_rows=True,
    )  # fmt: skip
    rgb_layers: int = option(
        12, "Transformer blocks of the RGB backbone to keep.", minimum=1, in_rows=True
    )
    token_grid: int = constant(28, minimum=1, maximum=256)

    def with_constants(self: Options) -> Options:
        """With the sizes of the network."""
        spec = get_rgb_spec(self.rgb_backbone)
        options = super().with_constants()
        return replace(
            options, rgb_size=spec.image_size, token_grid=spec.image_size // spec.patch_size
        )
