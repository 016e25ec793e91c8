"""Training of the feature fusion (UFF): a quick recipe and the published ones, in little memory.

Everything random comes from the recipe's seed. Features are read scan by scan from wherever they
are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmad_fast.errors import EmptyScanError, InvalidInputError, MmadFastError
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures
from mmad_fast.methods.m3dm.contrastive_loss import (
    PAIRINGS,
    in_blocks,
    info_nce,
    paired_tokens,
)
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock

MIN_UPDATES_PER_EPOCH = 10
"""Of "code": as many as the published training makes of its 2,656 scans; small sets are passed
several times per epoch."""
QUICK_UPDATES, QUICK_WARMUP_UPDATES = 120, 40
QUICK_PATCHES_PER_SCAN = 64
"""Neighbouring patches say nearly the same, and at a temperature of 1 the loss weighs all negatives
nearly alike: a sample of them does as well. bench/sweeps/m3dm_uff.toml compares the schedules."""
PAPER_UPDATES, PAPER_WARMUP_UPDATES = 750, 250
PAPER_PATCHES = 256
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01


class ScanStore(Protocol):
    """The patches of a set of scans: a list of them, or a FeatureStore."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PatchFeatures: ...


@dataclass(frozen=True)
class UffRecipe:
    """How the feature fusion is trained.

    "quick" makes 120 updates on 64 patches of each of 16 scans, 40 of them to warm up: whatever the
    number of scans, a few minutes on two cores, and better aligned than by the public code's 30.
    "code" is the public code's recipe: batches of all patches of 16 scans, 16 batches per update, 3
    epochs of 10 updates, of which the first warms up. On fewer than the published 2,656 scans an
    update takes fewer batches (one below 320 scans), so that 30 updates remain. "paper" is the
    paper's text: 750 updates on 256 patches each, of which 250 warm up. All end with half a cosine
    to 0.

    Attributes:
        pairing: "aligned", or "published_dump": the wrong pairs of the public code's dump.
        schedule: "quick", "code" or "paper".
        learning_rate: Of AdamW, at its highest.
        batch_scans: Scans whose patches are each other's negatives.
        accumulation: Batches per update at most.
        epochs: Of the schedule "code".
        warmup_epochs: Of them, those in which the learning rate rises.
        updates: Replaces the schedule's number of updates; its warm-up keeps its share.
        patches_per_scan: Foreground patches of each scan in a batch, drawn anew for each; None
            means as many as the schedule says.
        temperature: Of the loss.
        seed: Of the initial weights, the order and the patches.

    Source: M3DM section 4.1; method facts 5.2.
    """

    pairing: str = "aligned"
    schedule: str = "quick"
    learning_rate: float = 3e-3
    batch_scans: int = 16
    accumulation: int = 16
    epochs: int = 3
    warmup_epochs: int = 1
    updates: int | None = None
    patches_per_scan: int | None = None
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("pairing", PAIRINGS), ("schedule", ("quick", "code", "paper"))):
            if getattr(self, name) not in known:
                raise InvalidInputError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        counts = ("batch_scans", "accumulation", "epochs", "updates", "patches_per_scan")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} is {value}; it must be at least 1")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InvalidInputError(
                f"warmup_epochs is {self.warmup_epochs}; it must be from 0 to epochs, {self.epochs}"
            )

    def plan(self, num_scans: int) -> UpdatePlan:
        """What the recipe comes to on so many scans."""
        num_batches = math.ceil(num_scans / self.batch_scans)
        if self.schedule == "quick":
            plan = UpdatePlan(QUICK_UPDATES, QUICK_WARMUP_UPDATES, num_batches, 1)
        elif self.schedule == "paper":
            plan = UpdatePlan(PAPER_UPDATES, PAPER_WARMUP_UPDATES, num_batches, 1)
        else:
            accumulated = min(self.accumulation, max(1, num_batches // MIN_UPDATES_PER_EPOCH))
            per_epoch = max(MIN_UPDATES_PER_EPOCH, num_batches // accumulated)
            plan = UpdatePlan(
                self.epochs * per_epoch, self.warmup_epochs * per_epoch, num_batches, accumulated
            )
        if self.updates is None:
            return plan
        warmup = round(self.updates * plan.warmup_updates / plan.updates)
        return UpdatePlan(self.updates, warmup, num_batches, plan.batches_per_update)

    def drawn_patches(self, num_scans: int) -> int | None:
        """How many patches are drawn of each scan in a batch of so many; None means all."""
        if self.patches_per_scan is not None or self.schedule == "code":
            return self.patches_per_scan
        if self.schedule == "paper":
            return math.ceil(PAPER_PATCHES / num_scans)
        return QUICK_PATCHES_PER_SCAN


@dataclass(frozen=True)
class UpdatePlan:
    """How often and how the weights are changed.

    Attributes:
        updates: Steps of the optimiser.
        warmup_updates: Of them, those in which the learning rate rises.
        batches_per_pass: Batches that a pass over the scans makes.
        batches_per_update: Batches whose gradients are averaged.
    """

    updates: int
    warmup_updates: int
    batches_per_pass: int
    batches_per_update: int

    def factor(self, update: int) -> float:
        """What the learning rate of an update, counted from 0, is multiplied by: a line up, then
        half a cosine down to 0."""
        if update < self.warmup_updates:
            return (update + 1) / self.warmup_updates
        done = (update - self.warmup_updates) / max(1, self.updates - self.warmup_updates)
        return 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class UffRecord:
    """What a training did.

    Attributes:
        recipe: What was asked for.
        plan: What that was on these scans.
        num_scans: Scans it was trained on.
        losses: Mean loss of each update.
    """

    recipe: UffRecipe
    plan: UpdatePlan
    num_scans: int
    losses: tuple[float, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON types, with the first and last loss."""
        return {
            **asdict(self.recipe),
            **asdict(self.plan),
            "num_scans": self.num_scans,
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
        }


@dataclass(frozen=True)
class PatchBatch:
    """The patches of some scans, which are each other's negatives.

    Attributes:
        tokens: (U, C2) float32 distinct tokens that a patch is paired with.
        point_rows: (P, C3) float32.
        owner: (P,) int64, each patch's row of `tokens`.
    """

    tokens: Tensor
    point_rows: Tensor
    owner: Tensor


def train_uff(
    scans: ScanStore,
    recipe: UffRecipe | None = None,
    *,
    patch_grid: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[FeatureFusionBlock, UffRecord]:
    """The trained network, and the record of the training.

    Memory: the patches of a batch, 5 KiB each, and blocks of activations and logits; never
    patches x patches. docs/benchmarks/m3dm_accuracy.md has both.

    Args:
        scans: At least one with foreground, each with tokens and point rows.
        recipe: How; None means the quick one, correctly paired.
        patch_grid: Patches per side: 56 or 28.
        progress: Called with (updates done, updates in all).

    Raises:
        InvalidInputError: the patch grid is no multiple of the token grid.
        EmptyScanError: no scan, or a batch of scans without any foreground patch.
        MmadFastError: the loss became NaN or infinite.
    """
    recipe = UffRecipe() if recipe is None else recipe
    if not len(scans):
        raise EmptyScanError(_nothing_to_train_on(0))
    tokens, point_rows = scans[0].tokens, scans[0].point_rows
    assert tokens is not None
    assert point_rows is not None
    network = FeatureFusionBlock(point_rows.shape[1], tokens.shape[1], seed=recipe.seed)
    plan = recipe.plan(len(scans))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
    )
    rng = np.random.default_rng(recipe.seed)
    batches = _batches_of_scans(len(scans), plan.batches_per_pass, rng)
    losses = []
    for update in range(plan.updates):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * plan.factor(update)
        optimizer.zero_grad(set_to_none=True)
        mean_loss = 0.0
        for _ in range(plan.batches_per_update):
            batch = read_batch(scans, next(batches), recipe, rng, patch_grid=patch_grid)
            loss = batch_loss(network, batch, recipe.temperature) / plan.batches_per_update
            loss.backward()
            mean_loss += float(loss.detach())
        if not math.isfinite(mean_loss):
            raise MmadFastError(
                f"the UFF training diverged: the loss of update {update + 1} is {mean_loss}; check "
                "the features' weights, or train with a lower learning_rate"
            )
        optimizer.step()
        losses.append(mean_loss)
        if progress is not None:
            progress(update + 1, plan.updates)
    return network.eval(), UffRecord(recipe, plan, len(scans), tuple(losses))


def batch_loss(network: FeatureFusionBlock, batch: PatchBatch, temperature: float = 1.0) -> Tensor:
    """The contrastive loss of a batch, its gradient computed block by block."""
    queries = in_blocks(network.rgb_queries, batch.tokens)
    keys = in_blocks(network.point_keys, batch.point_rows)
    return info_nce(queries, keys, batch.owner, temperature=temperature)


def read_batch(
    scans: ScanStore,
    chosen: NDArray[np.int64],
    recipe: UffRecipe,
    rng: np.random.Generator,
    *,
    patch_grid: int,
) -> PatchBatch:
    """The patches of the chosen scans, or as many drawn from each as the recipe says.

    Raises:
        EmptyScanError: none of them has a foreground patch.
    """
    tokens, rows, owners = [], [], []
    num_tokens = 0
    wanted = recipe.drawn_patches(len(chosen))
    for scan in (scans[int(index)] for index in chosen):
        assert scan.tokens is not None
        assert scan.point_rows is not None
        patches, point_rows = scan.patches, scan.point_rows
        if wanted is not None and wanted < len(patches):
            drawn = np.sort(rng.choice(len(patches), wanted, replace=False))
            patches, point_rows = patches[drawn], point_rows[drawn]
        paired = paired_tokens(
            patches, patch_grid=patch_grid, num_tokens=len(scan.tokens), pairing=recipe.pairing
        )
        used, owner = np.unique(paired, return_inverse=True)
        tokens.append(scan.tokens[used])
        rows.append(point_rows)
        owners.append(owner.reshape(-1) + num_tokens)
        num_tokens += len(used)
    if not num_tokens:
        raise EmptyScanError(_nothing_to_train_on(len(chosen)))
    return PatchBatch(
        *(torch.from_numpy(np.concatenate(parts)) for parts in (tokens, rows, owners))
    )


def _nothing_to_train_on(num_scans: int) -> str:
    return (
        f"the {num_scans} scans of a batch have no foreground patch to train the UFF on; check the "
        "unit and the background plane, or fit with uff='none'"
    )


def _batches_of_scans(
    num_scans: int, num_batches: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Without end: each pass over the scans in another order, in batches of nearly one size."""
    while True:
        yield from np.array_split(rng.permutation(num_scans), num_batches)
