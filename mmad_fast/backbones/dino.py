"""The vision transformers DINO ViT-B/8 and DINOv2 ViT-S/14 and ViT-B/14, cut after a block.

Written with the official key names, so that a module's state dictionary is a cut of the official
checkpoint's. For inference: no dropout, no masks.

Source: method facts, section 2; facebookresearch/dino and facebookresearch/dinov2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_fast.backbones.checkpoint import fit_to_network, is_block_beyond, read_checkpoint
from mmad_fast.backbones.table import RgbSpec, get_rgb_spec
from mmad_fast.backbones.transformer import Attention, Mlp
from mmad_fast.backbones.weights import WeightsSource, resolve_weights
from mmad_fast.errors import InvalidInputError

NORM_EPS = 1e-6
INIT_STD = 0.02
POSITION_OFFSET = 0.1
"""Added to the target side before the scale is computed; DINO and DINOv2 do so to keep rounding
from losing a row. It shifts the samples slightly, so it is part of the published features."""

IGNORED_PREFIXES = ("head.", "dino_head.", "ibot_head.", "mask_token")


class PatchEmbed(nn.Module):
    """Tokens of an image: one linear map per patch."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """(B, T, C) tokens of image (B, 3, R, R), row-major over the patches."""
        return self.proj(image).flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    """A factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, C) times gamma (C,)."""
        return tokens * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, spec: RgbSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.dim, eps=NORM_EPS)
        self.attn = Attention(spec.dim, spec.num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(spec.dim, eps=NORM_EPS)
        self.mlp = Mlp(spec.dim)
        self.ls1 = LayerScale(spec.dim) if spec.layer_scale else nn.Identity()
        self.ls2 = LayerScale(spec.dim) if spec.layer_scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, C) of tokens (B, T, C)."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class VisionTransformer(nn.Module):
    """Patch tokens of an image after `num_layers` blocks and the final norm.

    Attributes:
        name: The backbone's name.
        image_size: R, side of the input in pixels.
        token_grid: Side of the token grid; T = token_grid^2.
        dim: C, channels of a token.
        num_layers: Blocks that are kept.
        weights_source: Where the weights came from.
    """

    def __init__(self, spec: RgbSpec, *, num_layers: int, image_size: int) -> None:
        super().__init__()
        self.name = spec.name
        self.image_size = image_size
        self.token_grid = image_size // spec.patch_size
        self.dim = spec.dim
        self.num_layers = num_layers
        self.weights_source = WeightsSource("random", "not initialised")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.token_grid**2, spec.dim))
        self.patch_embed = PatchEmbed(spec.patch_size, spec.dim)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(num_layers))
        self.norm = nn.LayerNorm(spec.dim, eps=NORM_EPS)

    def forward(self, image: Tensor) -> Tensor:
        """The patch tokens, final norm applied, class token dropped.

        Args:
            image: (B, 3, R, R) float32, normalised with the ImageNet mean and deviation.

        Returns:
            (B, T, C) float32, row-major over the token grid.
        """
        return self.tokens_after(image, (self.num_layers,))[0]

    def tokens_after(self, image: Tensor, blocks: Sequence[int]) -> tuple[Tensor, ...]:
        """The patch tokens (B, T, C) after each of these blocks, 1-based and ascending; the final
        norm is applied to each, as DINOv2's get_intermediate_layers does."""
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(image.shape[0], -1, -1)
        tokens = torch.cat((cls_token, self.patch_embed(image) + self.pos_embed[:, 1:]), dim=1)
        after = []
        for number, block in enumerate(self.blocks[: blocks[-1]], start=1):
            tokens = block(tokens)
            if number in blocks:
                after.append(self.norm(tokens[:, 1:]))
        return tuple(after)


def resize_position_embedding(pos_embed: Tensor, grid: int) -> Tensor:
    """(1, 1 + grid^2, C) float32: that of another token grid, as DINO and DINOv2 resize it.

    Bicubic without antialiasing, the scale being (grid + 0.1) / source side (see
    POSITION_OFFSET); unchanged where the side is the same.

    Args:
        pos_embed: (1, 1 + S^2, C) float32, class token first.
        grid: Side of the new token grid.

    Source: facebookresearch/dinov2, interpolate_pos_encoding with its published defaults.
    """
    source_grid = round((pos_embed.shape[1] - 1) ** 0.5)
    if source_grid == grid:
        return pos_embed
    scale = (grid + POSITION_OFFSET) / source_grid
    dim = pos_embed.shape[2]
    plane = pos_embed[:, 1:].reshape(1, source_grid, source_grid, dim).permute(0, 3, 1, 2)
    resized = F.interpolate(plane, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat((pos_embed[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


def build_rgb_backbone(
    name: str,
    *,
    num_layers: int,
    weights: str | Path = "auto",
    image_size: int | None = None,
    seed: int = 0,
    offline: bool = False,
) -> VisionTransformer:
    """A vision transformer cut after `num_layers` blocks, frozen, in evaluation mode.

    It maps images (B, 3, R, R) float32 to tokens (B, T, C) float32 after the final norm, class
    token dropped. Attributes: name, image_size, token_grid, dim, num_layers, weights_source.

    Args:
        name: One of RGB_BACKBONES.
        num_layers: Blocks to keep, 1-12.
        weights: "auto" (the user's cache, else the owner's download), "random" (seeded), or the
            path of the official .pth or a .safetensors file with the official keys.
        image_size: R in pixels, a multiple of the patch size; None for the size that gives
            28 x 28 tokens. The position embedding is resized once, here.
        seed: Of random weights.
        offline: With "auto": look into the cache only.

    Raises:
        InvalidInputError: unknown name, or num_layers or image_size out of range.
        WeightsError: the weights are missing, unreadable, do not fit, or cannot be downloaded.

    Source: method facts, section 2 (backbone and its cut as in CFM).
    """
    spec = get_rgb_spec(name)
    if not 1 <= num_layers <= spec.depth:
        raise InvalidInputError(
            f"{name}: num_layers is {num_layers}; it must be between 1 and {spec.depth}"
        )
    size = spec.image_size if image_size is None else image_size
    if size < spec.patch_size or size % spec.patch_size:
        raise InvalidInputError(
            f"{name}: image_size is {size}; it must be a positive multiple of {spec.patch_size}"
        )
    source = resolve_weights(name, weights, offline=offline, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VisionTransformer(spec, num_layers=num_layers, image_size=size)
        if source.path is None:
            _initialise(network)
    if source.path is not None:
        _load(network, spec, source.path)
    network.weights_source = source
    return network.eval().requires_grad_(False)


def _load(network: VisionTransformer, spec: RgbSpec, path: Path) -> None:
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    expected["pos_embed"] = (1, 1 + spec.pretrained_grid**2, spec.dim)

    def is_ignored(key: str) -> bool:
        beyond = is_block_beyond(key, r"blocks\.(\d+)\.", network.num_layers, spec.depth)
        return beyond or key.startswith(IGNORED_PREFIXES)

    state = fit_to_network(
        read_checkpoint(path),
        expected,
        is_ignored=is_ignored,
        network=f"{spec.name} with {network.num_layers} blocks",
        path=path,
    )
    state["pos_embed"] = resize_position_embedding(state["pos_embed"], network.token_grid)
    network.load_state_dict(state, strict=True)


def _initialise(network: VisionTransformer) -> None:
    """Initial values as DINO sets them: truncated normal, deviation 0.02; biases 0; norms 1, 0.

    The patch projection keeps torch's own initial values, as there.
    """
    nn.init.trunc_normal_(network.pos_embed, std=INIT_STD)
    nn.init.trunc_normal_(network.cls_token, std=INIT_STD)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            nn.init.zeros_(module.bias)
