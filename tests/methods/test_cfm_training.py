"""Training of the mapping networks on features made up here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.cfm import training
from mmad_fast.methods.cfm.detector import CfmFeatures
from mmad_fast.methods.cfm.fit import CfmFit
from mmad_fast.methods.cfm.networks import FeatureProjectionMLP
from mmad_fast.methods.cfm.training import TrainingRecipe, train_mappings
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.ops.sparse_rows import SparseRows

NAMES = ("rgb_to_point", "point_to_rgb")
QUICK = TrainingRecipe(epochs=40, pixels_per_step=256, learning_rate=2e-2, patience=None)
DENSE = TrainingRecipe(
    epochs=40,
    pixels_per_step=None,
    learning_rate=1e-2,
    standardize=False,
    schedule="constant",
    patience=None,
)


def random_rows(rng: np.random.Generator, num_pixels: int, num_columns: int) -> SparseRows:
    """Rows of one to three weights that sum to one."""
    lengths = rng.integers(1, 4, num_pixels)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    columns = np.concatenate(
        [np.sort(rng.choice(num_columns, size, replace=False)) for size in lengths]
    )
    values = rng.uniform(0.1, 1, len(columns))
    values /= np.repeat(np.add.reduceat(values, offsets[:-1]), lengths)
    return SparseRows(offsets, columns.astype(np.int32), values.astype(np.float32), num_columns)


def linked_features(seed: int, num_pixels: int = 300) -> CfmFeatures:
    """Both modalities are linear views of the same latent numbers, so each predicts the other."""
    rng = np.random.default_rng(seed)
    views = np.random.default_rng(99).normal(size=(2, 4, 8)).astype(np.float32)
    latent = rng.normal(size=(20, 4)).astype(np.float32)
    rows = random_rows(rng, num_pixels, 20)
    return CfmFeatures(
        tokens=latent @ views[0],
        token_rows=rows,
        point_features=latent @ views[1],
        point_rows=rows,
        pixel_indices=np.arange(num_pixels, dtype=np.int64),
    )


TRAIN = [linked_features(seed) for seed in range(5)]
VALIDATION = [linked_features(seed) for seed in (10, 11)]


@pytest.mark.parametrize("recipe", [QUICK, DENSE])
def test_training_learns_a_linked_modality(recipe: TrainingRecipe):
    networks, record = train_mappings(TRAIN, VALIDATION, NAMES, recipe=recipe)
    assert set(networks) == set(NAMES)
    assert record.epochs == 40
    assert record.best_epoch == 40
    assert record.validation_losses[0] > 0.5
    assert record.validation_losses[-1] < 0.15 * record.validation_losses[0]


def test_training_is_seeded():
    recipe = replace(QUICK, epochs=3)
    first, record = train_mappings(TRAIN, VALIDATION, NAMES, recipe=recipe)
    torch.manual_seed(123)
    again, record_again = train_mappings(TRAIN, VALIDATION, NAMES, recipe=recipe)
    assert record == record_again
    for name in NAMES:
        assert torch.equal(first[name].output.weight, again[name].output.weight)
    other, _ = train_mappings(TRAIN, VALIDATION, NAMES, recipe=replace(recipe, seed=1))
    assert not torch.equal(first[NAMES[0]].output.weight, other[NAMES[0]].output.weight)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_mappings(TRAIN, VALIDATION, NAMES[:1], recipe=replace(QUICK, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_early_stop_restores_the_best_weights():
    rng = np.random.default_rng(0)
    unrelated = replace(
        linked_features(0), point_features=rng.normal(size=(20, 8)).astype(np.float32)
    )
    validation = [replace(unrelated, point_features=rng.normal(size=(20, 8)).astype(np.float32))]
    recipe = TrainingRecipe(
        epochs=60, pixels_per_step=None, learning_rate=1e-2, schedule="constant", patience=4
    )
    networks, record = train_mappings([unrelated], validation, NAMES, recipe=recipe)
    assert record.epochs == record.best_epoch + 4 < 60
    best = record.validation_losses[record.best_epoch - 1]
    assert best == min(record.validation_losses)
    held_out = training._validation_pixels(validation, recipe.seed)
    restored = training._mean_loss(held_out, torch.nn.ModuleDict(networks))
    assert restored == pytest.approx(best, abs=1e-6)


def test_nan_features_are_an_error():
    broken = replace(TRAIN[0], tokens=np.full_like(TRAIN[0].tokens, np.nan))
    with pytest.raises(MmadFastError, match=r"loss became nan.*lower learning_rate"):
        train_mappings([broken], VALIDATION, NAMES, recipe=QUICK)


def test_folding_keeps_the_function():
    generator = torch.Generator().manual_seed(0)
    features = 5 + 3 * torch.randn(50, 8, generator=generator)
    source = (features.mean(0), features.std(0))
    target = (torch.arange(6.0), torch.arange(1.0, 7.0))
    mapping = training.StandardizedMapping(FeatureProjectionMLP(8, 6), source, target)
    torch.testing.assert_close(mapping.fold()(features), mapping(features), rtol=1e-4, atol=1e-5)


def test_statistics_are_per_channel_and_survive_constant_channels():
    tokens = TRAIN[0].tokens.copy()
    tokens[:, 2] = 7
    constant = replace(TRAIN[0], tokens=tokens)
    mean, deviation = training._channel_statistics([constant], seed=0)["rgb"]
    pixels = training._expand(constant, np.arange(len(constant.pixel_indices)))["rgb"]
    torch.testing.assert_close(mean, pixels.mean(0), rtol=0.05, atol=0.2)
    assert mean[2] == pytest.approx(7, rel=1e-5)
    assert 0 < float(deviation[2]) < 0.01 * float(deviation.mean())
    nothing = replace(TRAIN[0], tokens=np.zeros_like(tokens))
    assert training._channel_statistics([nothing], seed=0)["rgb"][1].tolist() == [1.0] * 8


def test_mixing_equals_the_sparse_rows():
    features = linked_features(3)
    chosen = np.array([5, 2, 250])
    mixed = training._expand(features, chosen)
    expected = features.point_rows.select(chosen).apply(features.point_features)
    np.testing.assert_allclose(mixed["point"].numpy(), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        mixed["rgb"].numpy(),
        features.token_rows.apply(features.tokens)[chosen],
        rtol=1e-6,
        atol=1e-7,
    )


def test_open_epochs_give_the_quick_number_of_steps():
    recipe = TrainingRecipe()
    assert recipe.num_epochs(1) == training.QUICK_STEPS
    assert recipe.num_epochs(24) * 6 >= training.QUICK_STEPS > (recipe.num_epochs(24) - 1) * 6
    assert recipe.num_epochs(10_000) == 1


def test_features_on_disk_train_the_same_networks(tmp_path: Path):
    recipe, records = replace(QUICK, epochs=2), []
    for limit_mib in (CfmFit.memory_limit_mib, 0.0):
        directory = tmp_path / f"{limit_mib:g}"
        with FeatureStore[CfmFeatures](directory, memory_limit_mib=limit_mib) as store:
            for features in TRAIN[:2]:
                store.append(features)
            assert bool(list(directory.iterdir())) == (limit_mib == 0)
            for found, features in zip(store, TRAIN[:2], strict=True):
                assert_same(found, features)
            networks, record = train_mappings(store, VALIDATION, NAMES, recipe=recipe)
        records.append((record, [networks[name].output.weight.tolist() for name in NAMES]))
    assert records[0] == records[1]


def assert_same(found: CfmFeatures, given: CfmFeatures) -> None:
    for name in ("tokens", "point_features", "pixel_indices"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
        assert getattr(found, name).dtype == getattr(given, name).dtype
    for name in ("token_rows", "point_rows"):
        rows, expected = getattr(found, name), getattr(given, name)
        assert rows.num_columns == expected.num_columns
        for part in ("offsets", "columns", "values"):
            np.testing.assert_array_equal(getattr(rows, part), getattr(expected, part))
            assert getattr(rows, part).dtype == getattr(expected, part).dtype
