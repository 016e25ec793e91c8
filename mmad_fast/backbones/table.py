"""The RGB backbones by name: what differs between them stands here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mmad_fast.errors import InvalidInputError


@dataclass(frozen=True)
class RgbSpec:
    """One vision transformer with published weights.

    Attributes:
        name: As in `--rgb-backbone` and in the manifest.
        patch_size: Side of a patch in pixels.
        dim: C, channels of a token.
        num_heads: Attention heads; a head has 64 channels.
        depth: Blocks of the published network.
        image_size: R, side of the input in pixels that gives 28 x 28 tokens.
        pretrained_grid: Side of the token grid that the published position embedding has.
        layer_scale: Whether each branch of a block is scaled per channel (DINOv2).
    """

    name: str
    patch_size: int
    dim: int
    num_heads: int
    depth: int
    image_size: int
    pretrained_grid: int
    layer_scale: bool


# Source: facebookresearch/dino and facebookresearch/dinov2, their published configurations;
# method facts, section 2. DINOv2 was trained at 518 pixels (37 x 37 tokens); 392 pixels give the
# 28 x 28 tokens that CFM's interpolation expects.
RGB_BACKBONES: dict[str, RgbSpec] = {
    spec.name: spec
    for spec in (
        RgbSpec("dino-vitb8", 8, 768, 12, 12, 224, 28, layer_scale=False),
        RgbSpec("dinov2-vits14", 14, 384, 6, 12, 392, 37, layer_scale=True),
        RgbSpec("dinov2-vitb14", 14, 768, 12, 12, 392, 37, layer_scale=True),
    )
}


def get_rgb_spec(name: str) -> RgbSpec:
    """The backbone of that name.

    Raises:
        InvalidInputError: no such name; the message lists the known ones.
    """
    try:
        return RGB_BACKBONES[name]
    except KeyError:
        known = ", ".join(RGB_BACKBONES)
        raise InvalidInputError(f"there is no RGB backbone {name!r}; known are {known}") from None
