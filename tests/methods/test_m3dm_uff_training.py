"""Training of the feature fusion: the loss against the plain one, memory, recipes, alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from mmad_fast.errors import EmptyScanError, InvalidInputError, MmadFastError
from mmad_fast.methods.m3dm import contrastive_loss
from mmad_fast.methods.m3dm.contrastive_loss import (
    alignment_accuracy,
    info_nce,
    paired_tokens,
)
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock
from mmad_fast.methods.m3dm.uff_training import (
    PatchBatch,
    UffRecipe,
    batch_loss,
    read_batch,
    train_uff,
)

TOKENS, PATCH_GRID = 49, 14
POINT, RGB = 24, 16


@dataclass
class Patches:
    """One scan, as the training reads it."""

    tokens: NDArray[np.float32] | None
    point_rows: NDArray[np.float32]
    patches: NDArray[np.int64]


def make_scans(num_scans: int, num_patches: int = 120) -> list[Patches]:
    """Scans whose tokens and point rows are two views of the same hidden causes."""
    rng = np.random.default_rng(0)
    to_rgb, to_point = rng.normal(size=(8, RGB)), rng.normal(size=(8, POINT))
    scans = []
    for _ in range(num_scans):
        causes = rng.normal(size=(TOKENS, 8))
        patches = np.sort(rng.choice(PATCH_GRID**2, num_patches, replace=False))
        own = paired_tokens(patches, patch_grid=PATCH_GRID, num_tokens=TOKENS)
        rows = causes[own] @ to_point + 0.1 * rng.normal(size=(num_patches, POINT))
        scans.append(
            Patches((causes @ to_rgb).astype(np.float32), rows.astype(np.float32), patches)
        )
    return scans


def plain_loss(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> torch.Tensor:
    """The published loss: one query per patch, all logits at once."""
    logits = queries @ keys.T / temperature
    return F.cross_entropy(logits, torch.arange(len(keys))) * 2 * temperature


@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("logits_at_once", [1, 30 * 7, 10**6])
def test_the_loss_and_its_gradients_are_the_plain_ones(
    temperature: float, logits_at_once: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = (
        F.normalize(torch.randn(rows, 9, generator=generator, dtype=torch.float64), dim=1)
        for rows in (11, 30)
    )
    owner = torch.cat([torch.arange(11), torch.randint(11, (19,), generator=generator)])
    found_inputs = [part.clone().requires_grad_() for part in (queries, keys)]
    found = info_nce(*found_inputs, owner, temperature=temperature, logits_at_once=logits_at_once)
    (3 * found).backward()
    plain_inputs = [part.clone().requires_grad_() for part in (queries, keys)]
    expected = plain_loss(plain_inputs[0][owner], plain_inputs[1], temperature)
    (3 * expected).backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for one, other in zip(found_inputs, plain_inputs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-14)


def test_a_batch_has_the_gradient_of_the_published_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each row through the network on its own, as the public code does it, in float64."""
    monkeypatch.setattr(contrastive_loss, "ROWS_AT_ONCE", 50)
    scans = make_scans(3)
    network = FeatureFusionBlock(POINT, RGB).double()
    batch = whole_batch(scans)
    batch = PatchBatch(batch.tokens.double(), batch.point_rows.double(), batch.owner)
    loss = batch_loss(network, batch)
    loss.backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad(set_to_none=True)
    tokens = np.concatenate([scan.tokens[own_tokens(scan)] for scan in scans])
    point_rows = np.concatenate([scan.point_rows for scan in scans])
    expected = plain_loss(
        network.rgb_queries(torch.from_numpy(tokens).double()),
        network.point_keys(torch.from_numpy(point_rows).double()),
        1.0,
    )
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-13)


def own_tokens(scan: Patches) -> NDArray[np.int64]:
    return paired_tokens(scan.patches, patch_grid=PATCH_GRID, num_tokens=TOKENS)


def whole_batch(scans: Sequence[Patches], recipe: UffRecipe | None = None) -> PatchBatch:
    recipe = UffRecipe(schedule="code") if recipe is None else recipe
    rng = np.random.default_rng(0)
    return read_batch(scans, np.arange(len(scans)), recipe, rng, patch_grid=PATCH_GRID)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor):
                self.largest = max(self.largest, part.numel())
        return result


def test_no_tensor_grows_with_the_square_of_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive_loss, "ROWS_AT_ONCE", 64)
    batch = whole_batch(make_scans(16))
    num_patches = len(batch.point_rows)
    queries = torch.nn.functional.normalize(torch.randn(len(batch.tokens), 8), dim=1)
    keys = torch.nn.functional.normalize(torch.randn(num_patches, 8), dim=1)
    with LargestTensor() as observed:
        info_nce(
            queries.requires_grad_(), keys.requires_grad_(), batch.owner, logits_at_once=20_000
        ).backward()
    assert observed.largest <= 20_000
    with LargestTensor() as plain:
        plain_loss(queries[batch.owner], keys, 1.0).backward()
    assert plain.largest == num_patches**2 == 1920**2


@pytest.mark.parametrize(("pairing", "num_aligned"), [("aligned", 3136), ("published_dump", 8)])
def test_pairs_of_the_published_grid(pairing: str, num_aligned: int) -> None:
    """Of the public dump's pairs 8 are right: method facts 5.2."""
    patches = np.arange(56 * 56)
    found = paired_tokens(patches, patch_grid=56, num_tokens=784, pairing=pairing)
    row, column = np.divmod(patches, 56)
    right = (row // 2) * 28 + column // 2
    assert (found == right).sum() == num_aligned
    assert (np.bincount(found, minlength=784) == 4).all()


def test_a_patch_grid_of_the_tokens_pairs_each_with_its_own() -> None:
    patches = np.array([0, 5, 783])
    found = paired_tokens(patches, patch_grid=28, num_tokens=784)
    np.testing.assert_array_equal(found, patches)
    with pytest.raises(InvalidInputError, match="784 tokens and 50 x 50 patches.*56x56 or 28x28"):
        paired_tokens(patches, patch_grid=50, num_tokens=784)


def test_the_published_set_gets_the_published_updates() -> None:
    plan = UffRecipe(schedule="code").plan(2656)
    assert (plan.updates, plan.warmup_updates) == (30, 10)
    assert (plan.batches_per_pass, plan.batches_per_update) == (166, 16)
    small = UffRecipe(schedule="code").plan(20)
    assert (small.updates, small.batches_per_pass, small.batches_per_update) == (30, 2, 1)
    assert UffRecipe(schedule="code").plan(320).batches_per_update == 2
    quick = UffRecipe().plan(20)
    assert (quick.updates, quick.warmup_updates, quick.batches_per_update) == (120, 40, 1)
    paper = UffRecipe(schedule="paper").plan(2656)
    assert (paper.updates, paper.warmup_updates, paper.batches_per_update) == (750, 250, 1)
    fewer = UffRecipe(updates=6).plan(20)
    assert (fewer.updates, fewer.warmup_updates) == (6, 2)


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    plan = UffRecipe(schedule="code").plan(2656)
    factors = [plan.factor(update) for update in range(plan.updates)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(
        factors[10:], [0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
    )


def test_training_aligns_what_belongs_together_and_the_dump_does_not() -> None:
    scans = make_scans(4)
    recipe = UffRecipe(schedule="code", updates=20, batch_scans=2)
    initial = alignment_accuracy(FeatureFusionBlock(POINT, RGB), scans, patch_grid=PATCH_GRID)
    assert initial.chance == pytest.approx(0.023, abs=0.002)
    assert initial.same_token < 0.1
    assert (initial.num_patches, initial.num_scans) == (480, 4)
    network, record = train_uff(scans, recipe, patch_grid=PATCH_GRID)
    trained = alignment_accuracy(network, scans, patch_grid=PATCH_GRID)
    assert trained.same_token > 0.9
    assert trained.within_one >= trained.same_token
    assert len(record.losses) == 20
    assert record.losses[-1] < record.losses[0]
    dumped = replace(recipe, pairing="published_dump")
    network, _ = train_uff(scans, dumped, patch_grid=PATCH_GRID)
    assert alignment_accuracy(network, scans, patch_grid=PATCH_GRID).same_token < 0.2


def test_training_depends_on_the_seed_alone() -> None:
    scans = make_scans(3, num_patches=40)
    recipe = UffRecipe(updates=2, batch_scans=2, patches_per_scan=20)

    def weights(seed: int, global_seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        network, _ = train_uff(scans, replace(recipe, seed=seed), patch_grid=PATCH_GRID)
        return network.xyz_mlp.fc1.weight

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


def test_patches_of_a_batch() -> None:
    scans = make_scans(16)
    assert len(whole_batch(scans, UffRecipe(schedule="paper")).point_rows) == 256
    assert len(whole_batch(scans, UffRecipe()).point_rows) == 16 * 64
    assert len(whole_batch(scans, UffRecipe(patches_per_scan=7)).point_rows) == 112
    assert len(whole_batch(scans).point_rows) == 16 * 120


def test_scans_without_foreground_add_nothing() -> None:
    empty = Patches(
        np.zeros((TOKENS, RGB), np.float32), np.zeros((0, POINT), np.float32), np.zeros(0, np.int64)
    )
    scans = make_scans(2, 10)
    batch = whole_batch([scans[0], empty, scans[1]])
    for found, expected in zip(
        vars(batch).values(), vars(whole_batch(scans)).values(), strict=True
    ):
        assert torch.equal(found, expected)
    with pytest.raises(EmptyScanError, match="the 1 scans of a batch have no foreground patch"):
        train_uff([empty], UffRecipe(updates=1), patch_grid=PATCH_GRID)
    with pytest.raises(EmptyScanError, match="no foreground patch.*uff='none'"):
        train_uff([], UffRecipe(updates=1), patch_grid=PATCH_GRID)
    with pytest.raises(EmptyScanError, match="no scan has a foreground patch"):
        alignment_accuracy(FeatureFusionBlock(POINT, RGB), [empty], patch_grid=PATCH_GRID)


def test_a_diverged_training_is_an_error() -> None:
    scans = make_scans(2, 10)
    scans[1].point_rows[3, 3] = np.inf
    with pytest.raises(MmadFastError, match="diverged: the loss of update 1 is nan"):
        train_uff(scans, UffRecipe(updates=2), patch_grid=PATCH_GRID)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"pairing": "right"}, "pairing is 'right'.*aligned, published_dump"),
        ({"schedule": "long"}, "schedule is 'long'.*quick, code, paper"),
        ({"updates": 0}, "updates is 0; it must be at least 1"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"warmup_epochs": 4}, "warmup_epochs is 4.*epochs, 3"),
    ],
)
def test_recipes_out_of_range_are_refused(option: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        UffRecipe(**option)


def test_the_record_holds_json_types() -> None:
    _, record = train_uff(make_scans(2, 20), UffRecipe(updates=2), patch_grid=PATCH_GRID)
    facts = record.to_dict()
    assert facts["pairing"] == "aligned"
    assert facts["updates"] == 2
    assert facts["num_scans"] == 2
    assert facts["last_loss"] < facts["first_loss"]
    assert all(isinstance(value, (str, int, float, type(None))) for value in facts.values())
