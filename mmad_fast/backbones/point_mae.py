"""Point-MAE: groups of points to features, cut after the last fetched block.

The module's state dictionary has the official key names; the group embedder behind them computes
the same function in another order (see GroupEmbedder). For inference only.

Source: method facts, section 3; Pang et al., Masked Autoencoders for Point Cloud Self-supervised
Learning, ECCV 2022 (Pang-Yatian/Point-MAE).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mmad_fast.backbones.checkpoint import fit_to_network, is_block_beyond, read_checkpoint
from mmad_fast.backbones.group_embedder import GroupEmbedder
from mmad_fast.backbones.transformer import Attention, Mlp
from mmad_fast.backbones.weights import WeightsSource, resolve_weights
from mmad_fast.errors import InvalidInputError

DEPTH = 12
DIM = 384
NUM_HEADS = 6
NORM_EPS = 1e-5
MAX_DROP_PROBABILITY = 0.1
BATCH_NORMS = ("cloud", "calibrated", "checkpoint")
DROP_PATHS = ("off", "seeded")

IGNORED_PREFIXES = ("mask_token", "decoder_pos_embed.", "MAE_decoder.", "increase_dim.")


class DropPath(nn.Module):
    """Drops a residual branch at random, per cloud, as the published train-mode pipelines do.

    A kept branch is divided by the probability of keeping it. Probability 0 draws nothing.
    """

    def __init__(self, probability: float, generator: torch.Generator) -> None:
        super().__init__()
        self.keep_probability = 1.0 - probability
        self.generator = generator

    def forward(self, branch: Tensor) -> Tensor:
        """branch (B, G, C), each cloud of it scaled up or zeroed."""
        if self.keep_probability == 1.0:
            return branch
        chance = torch.full((branch.shape[0], 1, 1), self.keep_probability)
        kept = torch.bernoulli(chance, generator=self.generator).to(branch)
        return branch * (kept / self.keep_probability)


class Block(nn.Module):
    """A pre-norm transformer block; queries, keys and values have no bias."""

    def __init__(self, drop_path: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM, eps=NORM_EPS)
        self.attn = Attention(DIM, NUM_HEADS, qkv_bias=False)
        self.norm2 = nn.LayerNorm(DIM, eps=NORM_EPS)
        self.mlp = Mlp(DIM)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, G, C) of tokens (B, G, C)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class Blocks(nn.Module):
    """The blocks, one level down as in the official names (blocks.blocks.0...)."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class PointMae(nn.Module):
    """Features of point groups: the fetched blocks' outputs, each normed, concatenated.

    Attributes:
        layers: 0-based blocks that are fetched, ascending.
        dim: Channels of the result, 384 per fetched block.
        batch_norm: "cloud", "calibrated" or "checkpoint".
        drop_path: "off" or "seeded".
        weights_source: Where the weights came from.
    """

    def __init__(
        self, *, layers: tuple[int, ...], batch_norm: str, drop_path: str, seed: int
    ) -> None:
        super().__init__()
        self.layers = layers
        self.dim = DIM * len(layers)
        self.batch_norm = batch_norm
        self.drop_path = drop_path
        self.weights_source = WeightsSource("random", "not initialised")
        self._generator = torch.Generator().manual_seed(seed)
        self.encoder = GroupEmbedder(uses_cloud_statistics=batch_norm == "cloud")
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, DIM))
        # The chance of a drop depends on a block's place among all twelve.
        probabilities = torch.linspace(0, MAX_DROP_PROBABILITY, DEPTH).tolist()
        self.blocks = Blocks(
            Block(
                DropPath(probability, self._generator) if drop_path == "seeded" else nn.Identity()
            )
            for probability in probabilities[: max(layers) + 1]
        )
        self.norm = nn.LayerNorm(DIM, eps=NORM_EPS)
        self._is_calibrated = batch_norm != "calibrated"

    def forward(self, groups: Tensor, centers: Tensor) -> Tensor:
        """The features of the groups.

        Args:
            groups: (B, G, K, 3) float32 metres, each point minus its group's centre.
            centers: (B, G, 3) float32 metres.

        Returns:
            (B, G, 384 * len(layers)) float32, channels in the order of `layers`.

        Raises:
            InvalidInputError: batch_norm is "calibrated" and nothing was calibrated yet.
        """
        if not self._is_calibrated:
            raise InvalidInputError(
                "batch_norm is 'calibrated' and there are no statistics yet; call "
                ".calibrate(groups of nominal clouds) first"
            )
        return self.transform(self.encoder(groups), centers)

    def transform(self, tokens: Tensor, centers: Tensor) -> Tensor:
        """The features of the groups from the embedder's tokens (B, G, 384); see `forward`."""
        position = self.pos_embed(centers)
        fetched = []
        for index, block in enumerate(self.blocks.blocks):
            # The position enters before every block and so stays in the residual stream.
            tokens = block(tokens + position)
            if index in self.layers:
                fetched.append(self.norm(tokens))
        return torch.cat(fetched, dim=-1) if len(fetched) > 1 else fetched[0]

    def calibrate(self, clouds: Iterable[Tensor]) -> None:
        """Freezes the embedder's batch statistics to those of all these clouds together.

        Args:
            clouds: Groups (G, K, 3) or (B, G, K, 3) float32 metres, centred, of nominal clouds.
                Read twice; a one-shot iterator is kept in memory meanwhile.

        Raises:
            InvalidInputError: batch_norm is not "calibrated", or there is no cloud.
        """
        if self.batch_norm != "calibrated":
            raise InvalidInputError(
                f"batch_norm is {self.batch_norm!r}; only a backbone built with "
                "batch_norm='calibrated' can be calibrated"
            )
        self.encoder.calibrate(clouds if isinstance(clouds, (list, tuple)) else list(clouds))
        self._is_calibrated = True

    def reseed(self, seed: int) -> None:
        """Starts the draws of dropped branches anew."""
        self._generator.manual_seed(seed)


class PointTransformer(nn.Module):
    """The part of Point-MAE behind the group embedder, as a network of its own: for export, since
    a detector runs the embedder as the op point_embedding."""

    def __init__(self, network: PointMae) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, centers: Tensor) -> Tensor:
        """(B, G, 384 * len(layers)) of tokens (B, G, 384) and centers (B, G, 3)."""
        return self.network.transform(tokens, centers)


def build_point_backbone(
    *,
    layers: tuple[int, ...],
    weights: str | Path = "auto",
    batch_norm: Literal["cloud", "calibrated", "checkpoint"] = "cloud",
    drop_path: Literal["off", "seeded"] = "off",
    seed: int = 0,
    offline: bool = False,
) -> PointMae:
    """Point-MAE cut after its last fetched block, frozen.

    It maps groups (B, G, K, 3) float32, centred, and centers (B, G, 3) float32, both in metres,
    to features (B, G, 384 * len(layers)) float32. Attributes: layers, dim, batch_norm,
    weights_source.

    Args:
        layers: 0-based blocks whose outputs are normed and concatenated, ascending.
        weights: "auto", "random", or the path of the official pretrain.pth (or a .safetensors file
            with its keys).
        batch_norm: "cloud": statistics of the clouds of the call, as the published pipelines do;
            "calibrated": frozen by `.calibrate(clouds)`; "checkpoint": running statistics of the
            checkpoint (0 and 1 with random weights).
        drop_path: "off", or "seeded": residual branches are dropped as in the published pipelines,
            which never leave train mode. For the reference pipeline; cannot be exported.
        seed: Of random weights and of the dropped branches.
        offline: With "auto": look into the cache only.

    Raises:
        InvalidInputError: layers or a mode is not a known one.
        WeightsError: the weights are missing, unreadable, do not fit, or cannot be downloaded.

    Source: method facts, sections 0.1 and 3.
    """
    _check_options(layers, batch_norm, drop_path)
    source = resolve_weights("point-mae", weights, offline=offline, seed=seed)
    with torch.random.fork_rng(devices=[]):
        # Random weights are torch's own initial values, drawn with this seed.
        torch.manual_seed(seed)
        network = PointMae(
            layers=tuple(layers), batch_norm=batch_norm, drop_path=drop_path, seed=seed
        )
    if source.path is not None:
        _load(network, source.path)
    network.encoder.refresh()
    network.weights_source = source
    return network.eval().requires_grad_(False)


def _check_options(layers: tuple[int, ...], batch_norm: str, drop_path: str) -> None:
    in_range = all(0 <= layer < DEPTH for layer in layers)
    if not layers or not in_range or list(layers) != sorted(set(layers)):
        raise InvalidInputError(
            f"point layers are {tuple(layers)}; give one or more of 0-{DEPTH - 1}, ascending, each "
            "once, for example (3, 7, 11)"
        )
    if batch_norm not in BATCH_NORMS:
        raise InvalidInputError(
            f"batch_norm is {batch_norm!r}; it must be one of {', '.join(BATCH_NORMS)}"
        )
    if drop_path not in DROP_PATHS:
        raise InvalidInputError(
            f"drop_path is {drop_path!r}; it must be one of {', '.join(DROP_PATHS)}"
        )


def _load(network: PointMae, path: Path) -> None:
    num_blocks = len(network.blocks.blocks)

    def is_ignored(key: str) -> bool:
        beyond = is_block_beyond(key, r"blocks\.blocks\.(\d+)\.", num_blocks, DEPTH)
        return beyond or key.startswith(IGNORED_PREFIXES)

    state = fit_to_network(
        read_checkpoint(path),
        {key: tuple(value.shape) for key, value in network.state_dict().items()},
        is_ignored=is_ignored,
        network=f"Point-MAE with {num_blocks} blocks",
        path=path,
    )
    network.load_state_dict(state, strict=True)
