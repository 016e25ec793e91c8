from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.embedding_cases import (
    assert_no_worse_than_plain,
    embedder_weights,
    random_groups,
    surface_groups,
)

from mmad_fast import _kernels
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding
from mmad_fast.ops.point_embedding import reference as definition

GUARD = 64
CLOUD = embedder_weights(uses_cloud_statistics=True)
FROZEN = embedder_weights(uses_cloud_statistics=False)
both_statistics = pytest.mark.parametrize("embedder", [CLOUD, FROZEN], ids=["cloud", "frozen"])


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    count = _kernels.num_threads()
    yield
    _kernels.set_num_threads(count)


@both_statistics
@pytest.mark.parametrize(
    ("num_groups", "group_size"),
    [(1, 7), (2, 8), (3, 9), (31, 63), (32, 32), (33, 1), (65, 5), (70, 17), (2, 300)],
)
def test_error_is_at_most_twice_that_of_plain_float32(
    num_groups: int, group_size: int, embedder: EmbedderWeights
) -> None:
    groups = random_groups(num_groups, group_size)
    found = point_embedding(groups, embedder, backend="cpu")
    assert_no_worse_than_plain(found, groups, embedder)


@both_statistics
@pytest.mark.parametrize("scale", [1, 1000], ids=["metres", "millimetres"])
def test_neighbourhoods_of_a_surface(scale: float, embedder: EmbedderWeights) -> None:
    groups = surface_groups(33, 128) * np.float32(scale)
    found = point_embedding(groups, embedder, backend="cpu")
    assert_no_worse_than_plain(found, groups, embedder)


@both_statistics
@pytest.mark.parametrize("name", ["BASELINE", "AVX2", "AVX512"])
def test_every_instruction_set(name: str, embedder: EmbedderWeights) -> None:
    instruction_set = getattr(_kernels.InstructionSet, name)
    if not _kernels.has_instruction_set(instruction_set):
        pytest.skip(f"this processor has no {name}")
    groups = random_groups(40, 21)
    buffer = np.full(40 * 384 + 2 * GUARD, np.nan, np.float32)
    tokens = buffer[GUARD:-GUARD].reshape(40, 384)
    assert _kernels.point_embedding(groups, embedder.pack(instruction_set), tokens)
    assert np.isnan(buffer[:GUARD]).all()
    assert np.isnan(buffer[-GUARD:]).all()
    assert_no_worse_than_plain(tokens, groups, embedder)


@pytest.mark.parametrize("batch_norm", ["cloud", "calibrated", "checkpoint"])
def test_against_torch_and_the_published_order_of_work(batch_norm: str) -> None:
    torch = pytest.importorskip("torch")
    from mmad_fast.backbones import build_point_backbone
    from mmad_fast.methods.branches.point_groups.reference import group_tokens

    network = build_point_backbone(layers=(0,), weights="random", batch_norm=batch_norm)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, value in network.encoder.state_dict().items():
            if value.ndim == 1 and "running" not in key:
                value += 0.2 * torch.randn(value.shape, generator=generator)
    network.encoder.refresh()
    groups = surface_groups(40, 32)
    clouds = torch.from_numpy(groups)
    if batch_norm == "calibrated":
        network.calibrate([clouds])
    weights = network.encoder.to_embedder_weights()
    is_cloud = batch_norm == "cloud"
    assert weights.uses_cloud_statistics == is_cloud
    with torch.inference_mode():
        rewritten = network.encoder(clouds[None])[0].numpy()
        published = group_tokens(
            network.encoder.double(), clouds.double(), uses_cloud_statistics=is_cloud
        ).numpy()
    scale = np.abs(published).max()
    for backend in ("cpu", "reference"):
        tokens = point_embedding(groups, weights, backend=backend)
        np.testing.assert_allclose(tokens, published, rtol=0, atol=1e-5 * scale)
        np.testing.assert_allclose(tokens, rewritten, rtol=0, atol=1e-5 * scale)


@both_statistics
@pytest.mark.usefixtures("_restore_threads")
def test_number_of_threads_changes_no_bit(embedder: EmbedderWeights) -> None:
    groups = random_groups(257, 19)
    results = []
    for count in (1, 2, 7):
        _kernels.set_num_threads(count)
        results.append(point_embedding(groups, embedder))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_concurrent_callers_of_new_weights_agree() -> None:
    groups = random_groups(64, 16)
    expected = point_embedding(groups, CLOUD)
    fresh = replace(CLOUD)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: point_embedding(groups, fresh), range(8)))
    for result in results:
        np.testing.assert_array_equal(result, expected)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), group_size=st.integers(1, 40))
def test_order_of_groups_and_points_does_not_matter(seed: int, group_size: int) -> None:
    rng = np.random.default_rng(seed)
    groups = random_groups(20, group_size, seed=seed)
    order, inner = rng.permutation(20), rng.permutation(group_size)
    for embedder in (CLOUD, FROZEN):
        expected = point_embedding(groups, embedder)
        found = point_embedding(groups[order][:, inner], embedder)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected[order], rtol=0, atol=2e-5 * scale)


def test_frozen_statistics_leave_each_group_alone() -> None:
    groups = random_groups(50, 30)
    whole = point_embedding(groups, FROZEN)
    np.testing.assert_array_equal(point_embedding(groups[7:20], FROZEN), whole[7:20])
    np.testing.assert_array_equal(
        point_embedding(np.concatenate([groups, groups], axis=1), FROZEN), whole
    )
    of_cloud = point_embedding(groups, CLOUD)[7:20]
    assert np.abs(point_embedding(groups[7:20], CLOUD) - of_cloud).max() > 1e-3


@both_statistics
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equal_points_and_outliers(backend: str, embedder: EmbedderWeights) -> None:
    """Without variance a norm divides by sqrt(1e-5), which multiplies rounding by 316."""
    same = np.full((9, 12, 3), 0.003, np.float32)
    expected = definition.point_embedding(same, embedder)
    found = point_embedding(same, embedder, backend=backend)
    np.testing.assert_allclose(found, expected, rtol=0, atol=316 * 1e-6)
    groups = random_groups(30, 20)
    groups[4, 3] = (4000, -9000, 12000)
    assert_no_worse_than_plain(point_embedding(groups, embedder, backend=backend), groups, embedder)


def test_strided_read_only_and_float64_groups() -> None:
    groups = random_groups(30, 20)
    expected = point_embedding(groups, CLOUD)
    strided = np.asfortranarray(groups)
    strided.flags.writeable = False
    np.testing.assert_array_equal(point_embedding(strided, CLOUD), expected)
    doubles = np.repeat(groups, 2, axis=1)[:, ::2].astype(np.float64)
    np.testing.assert_array_equal(point_embedding(doubles, CLOUD), expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_groups_give_no_tokens(backend: str) -> None:
    tokens = point_embedding(np.empty((0, 5, 3), np.float32), CLOUD, backend=backend)
    assert tokens.shape == (0, 384)
    assert tokens.dtype == np.float32


def test_refusals_of_groups() -> None:
    groups = random_groups(5, 6)

    def refused(match: str, bad: object, embedder: object = CLOUD) -> None:
        with pytest.raises(InvalidInputError, match=match):
            point_embedding(bad, embedder)

    refused(r"groups have shape \(5, 6, 2\); they must be \(G, K, 3\)", groups[..., :2])
    refused(r"shape \(6, 3\)", groups[0])
    refused(r"shape \(5, 0, 3\).* at least 1 point", groups[:, :0])
    refused("groups is a list", groups.tolist())
    refused("dtype int64", groups.astype(np.int64))
    refused("groups has a NaN in 30 of 30 rows", groups * np.nan)
    refused("embedder is a dict", groups, CLOUD.to_tensors(""))
    loud = replace(FROZEN, local_weight=FROZEN.local_weight * 1e17)
    refused("range of float32: check the scale of groups .* and of the", groups * 1e19, loud)
    with pytest.raises(BackendUnavailableError, match="known are auto, cpu, torch, reference"):
        point_embedding(groups, CLOUD, backend="gpu")


@both_statistics
def test_weights_survive_being_stored(embedder: EmbedderWeights) -> None:
    tensors = embedder.to_tensors("embedder.")
    tensors["other.first_weight"] = np.zeros(3)
    loaded = EmbedderWeights.from_tensors(dict(reversed(tensors.items())), "embedder.")
    assert loaded.uses_cloud_statistics == embedder.uses_cloud_statistics
    for name, array in embedder.to_tensors("").items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
    del tensors["embedder.wide_weight"]
    with pytest.raises(InvalidInputError, match=r"lacks embedder\.wide_weight; .*prefix 'embedder"):
        EmbedderWeights.from_tensors(tensors, "embedder.")


def test_refusals_of_weights() -> None:
    with pytest.raises(InvalidInputError, match=r"first_norm_weight.* give all of .* or none"):
        replace(FROZEN, first_norm_weight=CLOUD.first_norm_weight)
    with pytest.raises(InvalidInputError, match=r"wide_weight has shape \(128, 256\); it must be"):
        replace(FROZEN, wide_weight=FROZEN.wide_weight.T)
    with pytest.raises(InvalidInputError, match="group_bias has a NaN"):
        replace(FROZEN, group_bias=FROZEN.group_bias * np.nan)
