"""Fake official checkpoints: exactly the published keys and shapes, without the megabytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmad_fast.backbones.table import CNN_BACKBONES

torch = pytest.importorskip("torch", reason="the backbones need the fit extra")
from official_cnns import official_shapes  # noqa: E402


def vit_shapes(dim: int, patch: int, grid: int, *, layer_scale: bool) -> dict[str, tuple]:
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + grid * grid, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
    }
    for i in range(12):
        block = {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim),
            "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim),
            "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim),
            "mlp.fc2.bias": (dim,),
        }
        if layer_scale:
            block |= {"ls1.gamma": (dim,), "ls2.gamma": (dim,)}
        shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    if layer_scale:
        shapes["mask_token"] = (1, dim)
    return shapes


def _transformer_block(prefix: str) -> dict[str, tuple]:
    block = {
        "norm1.weight": (384,),
        "norm1.bias": (384,),
        "norm2.weight": (384,),
        "norm2.bias": (384,),
        "attn.qkv.weight": (1152, 384),
        "attn.proj.weight": (384, 384),
        "attn.proj.bias": (384,),
        "mlp.fc1.weight": (1536, 384),
        "mlp.fc1.bias": (1536,),
        "mlp.fc2.weight": (384, 1536),
        "mlp.fc2.bias": (384,),
    }
    return {prefix + key: shape for key, shape in block.items()}


def point_mae_shapes() -> dict[str, tuple]:
    """The keys of `base_model` in the released pretrain.pth."""
    encoder = {
        "encoder.first_conv.0.weight": (128, 3, 1),
        "encoder.first_conv.0.bias": (128,),
        "encoder.first_conv.3.weight": (256, 128, 1),
        "encoder.first_conv.3.bias": (256,),
        "encoder.second_conv.0.weight": (512, 512, 1),
        "encoder.second_conv.0.bias": (512,),
        "encoder.second_conv.3.weight": (384, 512, 1),
        "encoder.second_conv.3.bias": (384,),
        "pos_embed.0.weight": (128, 3),
        "pos_embed.0.bias": (128,),
        "pos_embed.2.weight": (384, 128),
        "pos_embed.2.bias": (384,),
        "norm.weight": (384,),
        "norm.bias": (384,),
    }
    for name, width in (("first_conv.1", 128), ("second_conv.1", 512)):
        for key in ("weight", "bias", "running_mean", "running_var"):
            encoder[f"encoder.{name}.{key}"] = (width,)
        encoder[f"encoder.{name}.num_batches_tracked"] = ()
    for i in range(12):
        encoder |= _transformer_block(f"blocks.blocks.{i}.")
    shapes = {f"MAE_encoder.{key}": shape for key, shape in encoder.items()}
    shapes |= {
        "mask_token": (1, 1, 384),
        "decoder_pos_embed.0.weight": (128, 3),
        "decoder_pos_embed.0.bias": (128,),
        "decoder_pos_embed.2.weight": (384, 128),
        "decoder_pos_embed.2.bias": (384,),
        "MAE_decoder.norm.weight": (384,),
        "MAE_decoder.norm.bias": (384,),
        "increase_dim.0.weight": (96, 384, 1),
        "increase_dim.0.bias": (96,),
    }
    for i in range(4):
        shapes |= _transformer_block(f"MAE_decoder.blocks.{i}.")
    return shapes


@pytest.fixture
def fake_state() -> Callable[[str], dict]:
    """State dictionaries whose tensors are one repeated number each: full shape, few bytes."""

    def make(name: str) -> dict:
        if name in CNN_BACKBONES:
            shapes = official_shapes(name)
        elif name == "dino-vitb8":
            shapes = vit_shapes(768, 8, 28, layer_scale=False)
        elif name == "dinov2-vits14":
            shapes = vit_shapes(384, 14, 37, layer_scale=True)
        elif name == "dinov2-vitb14":
            shapes = vit_shapes(768, 14, 37, layer_scale=True)
        else:
            shapes = point_mae_shapes()
        state = {}
        for number, (key, shape) in enumerate(shapes.items()):
            if key.endswith("num_batches_tracked"):
                state[key] = torch.tensor(7)
            else:
                state[key] = torch.tensor(0.001 * (number + 1)).expand(shape)
        return state

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object], Path]:
    """Writes an object as a .pth file and returns its path."""

    def write(content: object, name: str = "checkpoint.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def real_dinov2_weights() -> Path:
    """The real DINOv2 ViT-S/14 weights, where this checkout has them beside it."""
    beside = Path(__file__).parents[2] / ".." / "shared"
    shared = Path(os.environ.get("MMAD_FAST_SHARED", beside))
    path = shared / "weights" / "dinov2_vits14.safetensors"
    if not path.is_file():
        pytest.skip(f"needs the real DINOv2 weights at {path}")
    return path
