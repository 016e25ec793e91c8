"""The layers that the vision transformers and Point-MAE share, under their official names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values.

    The scale is head_size^-0.5, as in DINO, DINOv2 and Point-MAE.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, C) attended tokens of tokens (B, T, C)."""
        batch, num_tokens, dim = tokens.shape
        head_size = dim // self.num_heads
        qkv = self.qkv(tokens).reshape(batch, num_tokens, 3, self.num_heads, head_size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, head_size)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, num_tokens, dim))


class Mlp(nn.Module):
    """Two linear layers, four times as wide between, with the exact (erf) GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, C) of tokens (B, T, C)."""
        return self.fc2(F.gelu(self.fc1(tokens)))
