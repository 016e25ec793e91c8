"""The patch-wise contrastive loss of the feature fusion, in memory that grows with the number of
patches instead of its square, and the accuracy of the alignment that it trains.

The loss is the cross entropy of each patch's RGB query against the point keys of all patches. A
token is the query of several patches, whose logits are the same: one row per distinct token is
computed, and none is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmad_fast.errors import EmptyScanError, InvalidInputError
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures, tokens_of_patches
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock

LOGITS_AT_ONCE = 2**24
"""Logits that exist at any time: 64 MiB, and their exponentials in the same place."""
ROWS_AT_ONCE = 1024
"""Patches whose hidden activations exist at any time: 18 MiB per tensor of 4,608 channels."""
PAIRINGS = ("aligned", "published_dump")


def paired_tokens(
    patches: NDArray[np.int64], *, patch_grid: int, num_tokens: int, pairing: str = "aligned"
) -> NDArray[np.int64]:
    """The token (P,) that each patch is paired with.

    Args:
        patches: (P,) row-major indices on the patch grid.
        patch_grid: Patches per side, a multiple of the tokens per side.
        num_tokens: T, of a square grid.
        pairing: "aligned": the token at the patch's place. "published_dump": what the public code's
            dumped training features pair, which is another place for 99.7 % of the patches.

    Raises:
        InvalidInputError: the grids do not fit, or an unknown pairing.

    Source: method facts 5.2 (the permutation of the dump).
    """
    token_grid = math.isqrt(num_tokens)
    if token_grid**2 != num_tokens or patch_grid % token_grid:
        raise InvalidInputError(
            f"{num_tokens} tokens and {patch_grid} x {patch_grid} patches: the patch grid's side "
            "must be a multiple of the token grid's; choose point_patches 56x56 or 28x28"
        )
    if pairing == "aligned":
        return tokens_of_patches(patch_grid, token_grid)[patches]
    if pairing == "published_dump":
        repeats = (patch_grid // token_grid) ** 2
        return (repeats * (patches % num_tokens) + patches // num_tokens) % num_tokens
    raise InvalidInputError(f"pairing is {pairing!r}; it must be one of {', '.join(PAIRINGS)}")


class _InfoNce(torch.autograd.Function):
    """See `info_nce`. The gradients are computed with the loss, while a block's logits are there;
    a backward pass would have to compute them again."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, owner: Tensor, temperature: float, at_once: int
    ) -> Tensor:
        num_patches = len(keys)
        needs_gradient = any(ctx.needs_input_grad[:2])
        counts = torch.bincount(owner, minlength=len(queries)).to(queries.dtype)
        own = (queries[owner] * keys).sum(-1) / temperature  # (P,)
        total = -own.sum()
        grad_queries, grad_keys = torch.zeros_like(queries), torch.zeros_like(keys)
        for block in torch.arange(len(queries)).split(max(1, at_once // num_patches)):
            first, end = int(block[0]), int(block[-1]) + 1
            weight = counts[first:end]
            logits = queries[first:end] @ keys.T
            logits.div_(temperature)
            log_sums = logits.logsumexp(1)  # (B,)
            total = total + (weight * log_sums).sum()
            if needs_gradient:
                shares = logits.sub_(log_sums[:, None]).exp_().mul_(weight[:, None])
                torch.mm(shares, keys, out=grad_queries[first:end])
                grad_keys.addmm_(shares.T, queries[first:end])
        if needs_gradient:
            grad_queries.index_add_(0, owner, keys, alpha=-1)
            grad_keys.sub_(queries[owner])
            ctx.save_for_backward(grad_queries, grad_keys)
            ctx.scale = 2 / num_patches
        return total * (2 * temperature / num_patches)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_queries, grad_keys = ctx.saved_tensors
        scale = grad * ctx.scale
        return grad_queries * scale, grad_keys * scale, None, None, None


def info_nce(
    queries: Tensor,
    keys: Tensor,
    owner: Tensor,
    *,
    temperature: float = 1.0,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """The loss: mean over patches p of 2 T (log sum_j exp(q_p.k_j / T) - q_p.k_p / T).

    Equal to torch's cross entropy of the P x P logits against the diagonal, times 2 T, as are its
    gradients; neither is more than `logits_at_once` numbers large at any time.

    Args:
        queries: (U, D) of the distinct tokens.
        keys: (P, D) of the patches.
        owner: (P,) int64, each patch's row of `queries`.
        temperature: T.
        logits_at_once: Logits that may exist at any time.

    Source: M3DM equation 2; the public code takes the cross entropy, method facts 5.2.
    """
    return _InfoNce.apply(queries, keys, owner, temperature, logits_at_once)


def in_blocks(embed: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`embed` of all rows (R, C), with the activations of ROWS_AT_ONCE of them in memory: those of
    a block are computed again when its gradient is due."""
    return torch.cat(
        [checkpoint(embed, block, use_reentrant=False) for block in rows.split(ROWS_AT_ONCE)]
    )


@dataclass(frozen=True)
class AlignmentAccuracy:
    """How well a network finds the point patch that belongs to a token.

    Of each foreground patch, its token's query picks the key with the largest product among the
    scan's foreground patches. The patches of one token share their query, so it is the token's
    place that can be found.

    Attributes:
        same_token: Fraction of patches whose token picks one of its own patches.
        within_one: Fraction of patches whose token picks a patch of its own or of one of the eight
            tokens around it.
        chance: `same_token` of a network that guesses.
        num_patches: Patches that were judged.
        num_scans: Scans that they are of.
    """

    same_token: float
    within_one: float
    chance: float
    num_patches: int
    num_scans: int


@torch.inference_mode()
def alignment_accuracy(
    network: FeatureFusionBlock, scans: Iterable[PatchFeatures], *, patch_grid: int
) -> AlignmentAccuracy:
    """The accuracy over all foreground patches of the scans, whatever pairing it was trained with.

    Args:
        network: With its training heads.
        scans: Read one after the other.
        patch_grid: Patches per side.

    Raises:
        EmptyScanError: no foreground patch in any scan.
        InvalidInputError: the grids do not fit.
    """
    same = near = patches = num_scans = 0
    chance = 0.0
    for scan in scans:
        if not len(scan.patches):
            continue
        assert scan.tokens is not None
        assert scan.point_rows is not None
        token_grid = math.isqrt(len(scan.tokens))
        tokens = paired_tokens(scan.patches, patch_grid=patch_grid, num_tokens=len(scan.tokens))
        used, owner, counts = np.unique(tokens, return_inverse=True, return_counts=True)
        queries = in_blocks(network.rgb_queries, torch.from_numpy(scan.tokens[used]))
        keys = in_blocks(network.point_keys, torch.from_numpy(np.array(scan.point_rows)))
        picked = tokens[(queries @ keys.T).argmax(1).numpy()]  # (U,) token of the best key
        (row, column), (picked_row, picked_column) = (
            np.divmod(index, token_grid) for index in (used, picked)
        )
        distance = np.maximum(abs(row - picked_row), abs(column - picked_column))
        same += int(counts[distance == 0].sum())
        near += int(counts[distance <= 1].sum())
        chance += float((counts / len(owner) * counts).sum())
        patches += len(owner)
        num_scans += 1
    if not patches:
        raise EmptyScanError(
            "no scan has a foreground patch to measure the alignment on; check the unit and the "
            "background plane"
        )
    return AlignmentAccuracy(same / patches, near / patches, chance / patches, patches, num_scans)
