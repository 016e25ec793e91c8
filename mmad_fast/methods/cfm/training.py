"""Training of the mapping networks on cached features: the quick recipe and the published one.

Both minimise [1 - mean cos(predicted, observed)] per direction over foreground pixels. The
published recipe takes all foreground pixels of four scans per step. Neighbouring pixels are mixed
from the same few tokens and say nearly the same, so the quick recipe samples some hundred a scan.
It also trains in standardised coordinates, which takes several times fewer steps; afterwards they
are folded into the first and last Linear, so that the networks have the published form.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.cfm.features import CfmFeatures
from mmad_fast.methods.cfm.networks import MAPPING_NETWORKS
from mmad_fast.methods.feature_store import ScanFeatures
from mmad_fast.ops.sparse_rows import SparseRows

QUICK_STEPS = 200
"""Optimiser steps of the quick recipe when the epochs are left open."""
COSINE_EPS = 1e-6
VALIDATION_PIXELS = 2048
"""Fixed pixels, spread over the validation scans, on which the validation loss is computed."""
STATISTICS_PIXELS = 16384
"""Pixels, spread over the training scans, that give the channels' mean and deviation."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How the mapping networks are trained: the part of CfmOptions that says so, and the seed. The
    defaults are the quick recipe.

    Attributes:
        epochs: Passes over the training scans; None means as many as QUICK_STEPS steps need.
        pixels_per_step: Foreground pixels per step over all its scans; None means all of them.
        learning_rate: Of Adam, at the start.
        standardize: Train on features of mean 0 and deviation 1 per channel.
        schedule: "cosine" to zero over all steps, or "constant" as published.
        batch_scans: Scans per step.
        patience: Epochs without a better validation loss before it stops; None means never, and the
            last epoch's weights are kept instead of the best one's.
        seed: Of initial weights, order and pixels.
    """

    epochs: int | None = None
    pixels_per_step: int | None = 512
    learning_rate: float = 3e-3
    standardize: bool = True
    schedule: str = "cosine"
    batch_scans: int = 4
    patience: int | None = 10
    seed: int = 0

    def num_epochs(self, num_scans: int) -> int:
        """Passes over `num_scans` training scans."""
        if self.epochs is not None:
            return self.epochs
        return math.ceil(QUICK_STEPS / math.ceil(num_scans / self.batch_scans))


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run did.

    Attributes:
        epochs: Passes that were run.
        best_epoch: The pass, counted from 1, whose weights were kept.
        losses: Mean training loss per epoch.
        validation_losses: Validation loss per epoch.
    """

    epochs: int
    best_epoch: int
    losses: tuple[float, ...] = field(repr=False)
    validation_losses: tuple[float, ...] = field(repr=False)


def train_mappings(
    train: ScanFeatures[CfmFeatures],
    validation: ScanFeatures[CfmFeatures],
    names: Sequence[str],
    *,
    hidden: str = "published",
    recipe: TrainingRecipe | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, nn.Module], TrainingRecord]:
    """The trained networks by name, and the record of the run.

    Args:
        train: Features of the training scans, at least one.
        validation: Features of the validation scans, at least one. With a patience, the weights of
            the epoch with the lowest loss on them are kept, without one those of the last epoch.
        names: Networks to train, of options.MAPPINGS.
        hidden: A key of networks.MAPPING_NETWORKS.
        recipe: How; None means the quick recipe.
        progress: Called with (epochs done, epochs in all).

    Raises:
        MmadFastError: the loss became NaN or infinite.
    """
    recipe = TrainingRecipe() if recipe is None else recipe
    networks = _initial_networks(train[0], names, hidden, recipe.seed)
    if recipe.standardize:
        networks = _standardized(networks, _channel_statistics(train, recipe.seed))
    optimizer = torch.optim.Adam(networks.parameters(), lr=recipe.learning_rate)
    rng = np.random.default_rng(recipe.seed)
    epochs = recipe.num_epochs(len(train))
    num_steps = epochs * math.ceil(len(train) / recipe.batch_scans)
    held_out = _validation_pixels(validation, recipe.seed)
    losses: list[float] = []
    validation_losses: list[float] = []
    best = copy.deepcopy(networks.state_dict())
    best_epoch = 0
    for epoch in range(1, epochs + 1):
        losses.append(_train_epoch(train, networks, optimizer, rng, recipe, num_steps))
        validation_losses.append(_mean_loss(held_out, networks))
        if validation_losses[-1] == min(validation_losses) or recipe.patience is None:
            best, best_epoch = copy.deepcopy(networks.state_dict()), epoch
        if progress is not None:
            progress(epoch, epochs)
        if recipe.patience is not None and epoch - best_epoch >= recipe.patience:
            break
    networks.load_state_dict(best)
    record = TrainingRecord(len(losses), best_epoch, tuple(losses), tuple(validation_losses))
    return {name: _published_form(networks[name]) for name in names}, record


def _initial_networks(
    features: CfmFeatures, names: Sequence[str], hidden: str, seed: int
) -> nn.ModuleDict:
    widths = {"rgb": features.tokens.shape[1], "point": features.point_features.shape[1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {}
        for name in names:
            source, target = name.split("_to_")
            networks[name] = MAPPING_NETWORKS[hidden](widths[source], widths[target])
    return nn.ModuleDict(networks)


class StandardizedMapping(nn.Module):
    """A mapping network that sees and gives features of mean 0 and deviation 1 per channel."""

    def __init__(
        self,
        network: nn.Module,
        source: tuple[Tensor, Tensor],
        target: tuple[Tensor, Tensor],
    ) -> None:
        """Takes mean and deviation (C,) of the source's and of the target's features."""
        super().__init__()
        self.network = network
        self.source_mean, self.source_deviation = source
        self.target_mean, self.target_deviation = target

    def forward(self, features: Tensor) -> Tensor:
        """(P, Ct) predicted features, from features (P, Cs), both in their own coordinates."""
        standardized = (features - self.source_mean) / self.source_deviation
        return self.network(standardized) * self.target_deviation + self.target_mean

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """The network that computes the same in the features' own coordinates."""
        folded: Any = copy.deepcopy(self.network)
        weight = folded.input.weight / self.source_deviation
        folded.input.bias.sub_(weight @ self.source_mean)
        folded.input.weight.copy_(weight)
        folded.output.weight.mul_(self.target_deviation[:, None])
        folded.output.bias.mul_(self.target_deviation).add_(self.target_mean)
        return folded


def _standardized(
    networks: nn.ModuleDict, statistics: dict[str, tuple[Tensor, Tensor]]
) -> nn.ModuleDict:
    standardized = {}
    for name, network in networks.items():
        source, target = name.split("_to_")
        standardized[name] = StandardizedMapping(network, statistics[source], statistics[target])
    return nn.ModuleDict(standardized)


def _published_form(network: nn.Module) -> nn.Module:
    return (network.fold() if isinstance(network, StandardizedMapping) else network).eval()


def _channel_statistics(
    train: ScanFeatures[CfmFeatures], seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation (C,) by modality, over some pixels of every training scan.

    A channel that hardly varies gets a thousandth of the mean deviation, so as not to be blown up.
    """
    rng = np.random.default_rng(seed)
    per_scan = math.ceil(STATISTICS_PIXELS / len(train))
    parts = [_sample_pixels([scan], per_scan, rng) for scan in train]
    statistics = {}
    for side in ("rgb", "point"):
        count = sum(len(part[side]) for part in parts)
        mean = torch.stack([part[side].double().sum(0) for part in parts]).sum(0) / count
        squares = [(part[side].double() - mean).square().sum(0) for part in parts]
        deviation = (torch.stack(squares).sum(0) / count).sqrt()
        floor = 1e-3 * deviation.mean()
        deviation = deviation.clamp(min=float(floor)) if floor > 0 else torch.ones_like(deviation)
        statistics[side] = (mean.float(), deviation.float())
    return statistics


def _train_epoch(
    train: ScanFeatures[CfmFeatures],
    networks: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    recipe: TrainingRecipe,
    num_steps: int,
) -> float:
    """The mean loss of one pass over the training scans."""
    order = rng.permutation(len(train))
    losses = []
    for start in range(0, len(order), recipe.batch_scans):
        batch = [train[index] for index in order[start : start + recipe.batch_scans]]
        pixels = _sample_pixels(batch, recipe.pixels_per_step, rng)
        loss = _loss(pixels, networks)
        if not torch.isfinite(loss):
            raise MmadFastError(
                f"the training loss became {loss.item()} at learning rate "
                f"{recipe.learning_rate:g}; lower learning_rate, or check the backbone weights"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _set_learning_rate(optimizer, recipe, num_steps)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def _set_learning_rate(
    optimizer: torch.optim.Optimizer, recipe: TrainingRecipe, num_steps: int
) -> None:
    for group in optimizer.param_groups:
        done = group.get("steps_done", 0)
        group["steps_done"] = done + 1
        if recipe.schedule == "cosine":
            group["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done / num_steps))


def _sample_pixels(
    batch: Sequence[CfmFeatures], pixels_per_step: int | None, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Features (P, C) by modality of foreground pixels of the scans, drawn without replacement."""
    parts = []
    for features in batch:
        num_pixels = features.token_rows.num_rows
        chosen = np.arange(num_pixels)
        if pixels_per_step is not None:
            count = min(num_pixels, math.ceil(pixels_per_step / len(batch)))
            chosen = rng.choice(num_pixels, size=count, replace=False)
        parts.append(_expand(features, chosen))
    return {side: torch.cat([part[side] for part in parts]) for side in ("rgb", "point")}


def _validation_pixels(validation: ScanFeatures[CfmFeatures], seed: int) -> list[dict[str, Tensor]]:
    """Features (P, C) by modality of fixed pixels of each scan."""
    rng = np.random.default_rng(seed)
    per_scan = math.ceil(VALIDATION_PIXELS / len(validation))
    return [_sample_pixels([features], per_scan, rng) for features in validation]


def _expand(features: CfmFeatures, chosen: NDArray[np.int64]) -> dict[str, Tensor]:
    """The features of the chosen foreground pixels by modality, each (P, C)."""
    return {
        "rgb": _mix(features.tokens, features.token_rows.select(chosen)),
        "point": _mix(features.point_features, features.point_rows.select(chosen)),
    }


def _mix(features: NDArray[np.float32], rows: SparseRows) -> Tensor:
    """(P, C) the rows (P x T) applied to features (T, C)."""
    return F.embedding_bag(
        torch.from_numpy(rows.columns.astype(np.int64)),
        torch.from_numpy(np.array(features)),
        torch.from_numpy(rows.offsets),
        mode="sum",
        per_sample_weights=torch.from_numpy(rows.values),
        include_last_offset=True,
    )


def _loss(pixels: dict[str, Tensor], networks: nn.ModuleDict) -> Tensor:
    """The sum over the networks of 1 - mean cosine. Source: CFM section 3.2, equation 2."""
    loss = torch.zeros(())
    for name, network in networks.items():
        source, target = name.split("_to_")
        cosine = F.cosine_similarity(
            network(pixels[source]), pixels[target], dim=-1, eps=COSINE_EPS
        )
        loss = loss + 1 - cosine.mean()
    return loss


@torch.inference_mode()
def _mean_loss(parts: Sequence[dict[str, Tensor]], networks: nn.ModuleDict) -> float:
    return float(np.mean([_loss(pixels, networks).item() for pixels in parts]))
