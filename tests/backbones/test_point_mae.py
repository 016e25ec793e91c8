"""Point-MAE against the published order of work, written anew in plain torch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmad_fast.backbones import build_point_backbone
from mmad_fast.backbones.point_mae import PointTransformer
from mmad_fast.errors import InvalidInputError


def randomised_backbone(seed=0, **options):
    """A backbone whose norms, biases and running statistics all matter."""
    network = build_point_backbone(weights="random", **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            if "running_var" in key:
                value.copy_(0.02 + 0.1 * torch.rand(value.shape, generator=generator))
            elif value.ndim == 1:
                centre = 1.0 if key.endswith("weight") else 0.0
                value.copy_(centre + 0.2 * torch.randn(value.shape, generator=generator))
    network.encoder.refresh()
    return network


def make_cloud(num_groups=70, num_neighbors=9, seed=1, batch=1, scale=0.004):
    """Groups with sizes and offsets that differ, as on a surface seen at an angle."""
    generator = torch.Generator().manual_seed(seed)
    stretch = 0.3 + torch.rand(batch, num_groups, 1, 3, generator=generator)
    groups = torch.randn(batch, num_groups, num_neighbors, 3, generator=generator) * stretch
    groups = (groups + 0.5 * stretch) * scale
    groups[:, :, 0] = 0  # the centre is a member of its group
    centers = torch.randn(batch, num_groups, 3, generator=generator) * 0.05
    return groups, centers + torch.tensor([0.0, 0.0, 0.4])


def plain_embedder(encoder, groups, *, train):
    """The published order of work with torch's own layers."""
    encoder = copy.deepcopy(encoder).to(groups.dtype).train(train)
    batch, num_groups, num_neighbors, _ = groups.shape
    points = groups.reshape(batch * num_groups, num_neighbors, 3).transpose(1, 2)
    features = encoder.first_conv(points)  # (B*G, 256, K)
    maxima = features.max(dim=2, keepdim=True)[0]
    features = torch.cat([maxima.expand(-1, -1, num_neighbors), features], dim=1)
    features = encoder.second_conv(features)
    return features.max(dim=2)[0].reshape(batch, num_groups, 384)


def plain_block(block, tokens):
    heads = 6
    normed = F.layer_norm(tokens, (384,), block.norm1.weight, block.norm1.bias, 1e-5)
    query, key, value = F.linear(normed, block.attn.qkv.weight).chunk(3, dim=-1)
    attended = []
    for q, k, v in zip(query.split(64, -1), key.split(64, -1), value.split(64, -1), strict=True):
        attended.append(torch.softmax(q @ k.transpose(1, 2) * 64**-0.5, dim=-1) @ v)
    assert len(attended) == heads
    attention = F.linear(torch.cat(attended, -1), block.attn.proj.weight, block.attn.proj.bias)
    tokens = tokens + attention
    normed = F.layer_norm(tokens, (384,), block.norm2.weight, block.norm2.bias, 1e-5)
    hidden = F.linear(normed, block.mlp.fc1.weight, block.mlp.fc1.bias)
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return tokens + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)


def plain_point_mae(network, groups, centers, *, train=True):
    tokens = plain_embedder(network.encoder, groups, train=train)
    first, _, second = network.pos_embed
    hidden = F.linear(centers, first.weight, first.bias)
    position = F.linear(0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)), second.weight, second.bias)
    fetched = []
    for index, block in enumerate(network.blocks.blocks):
        tokens = plain_block(block, tokens + position)
        if index in network.layers:
            normed = F.layer_norm(tokens, (384,), network.norm.weight, network.norm.bias, 1e-5)
            fetched.append(normed)
    return torch.cat(fetched, dim=-1)


def assert_no_worse_than_plain(ours, plain, truth):
    """The project's bound: at most twice plain code's error in the same precision."""
    scale = truth.abs().max()
    plain_error = (plain - truth).abs().max()
    error = (ours - truth).abs().max()
    assert error <= 2 * plain_error + 1e-6 * scale


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("scale", [0.004, 4.0], ids=["metres", "millimetres"])
def test_embedder_with_cloud_statistics_equals_train_mode(batch, scale):
    network = randomised_backbone(layers=(0,))
    groups, _ = make_cloud(batch=batch, scale=scale)
    with torch.inference_mode():
        truth = plain_embedder(network.encoder, groups.double(), train=True)
        plain = plain_embedder(network.encoder, groups, train=True)
        assert_no_worse_than_plain(network.encoder(groups), plain, truth)
        # The statistics matter: those of the checkpoint give something else.
        other = plain_embedder(network.encoder, groups.double(), train=False)
    assert (truth - other).abs().max() > 0.1 * truth.abs().max()


def test_embedder_with_checkpoint_statistics_equals_eval_mode():
    network = randomised_backbone(layers=(0,), batch_norm="checkpoint")
    groups, _ = make_cloud()
    with torch.inference_mode():
        truth = plain_embedder(network.encoder, groups.double(), train=False)
        plain = plain_embedder(network.encoder, groups, train=False)
        assert_no_worse_than_plain(network.encoder(groups), plain, truth)


@pytest.mark.parametrize("num_groups", [1, 63, 64, 65])
def test_number_of_groups_need_not_fill_the_chunks(num_groups):
    network = randomised_backbone(layers=(0,))
    groups, _ = make_cloud(num_groups=num_groups)
    with torch.inference_mode():
        truth = plain_embedder(network.encoder, groups.double(), train=True)
        plain = plain_embedder(network.encoder, groups, train=True)
        ours = network.encoder(groups)
    assert ours.shape == (1, num_groups, 384)
    assert_no_worse_than_plain(ours, plain, truth)


@pytest.mark.parametrize("layers", [(0,), (1, 3)])
def test_features_equal_plain_torch(layers):
    network = randomised_backbone(layers=layers)
    groups, centers = make_cloud()
    with torch.inference_mode():
        truth = plain_point_mae(copy.deepcopy(network).double(), groups.double(), centers.double())
        plain = plain_point_mae(network, groups, centers)
        ours = network(groups, centers)
    assert ours.shape == (1, 70, 384 * len(layers))
    assert network.dim == 384 * len(layers)
    assert_no_worse_than_plain(ours, plain, truth)


def test_the_part_behind_the_embedder_continues_from_its_tokens():
    network = randomised_backbone(layers=(0, 2))
    groups, centers = make_cloud(num_groups=20)
    with torch.inference_mode():
        found = PointTransformer(network)(network.encoder(groups), centers)
        assert torch.equal(found, network(groups, centers))


def test_cutting_equals_hooks_on_the_full_network():
    full = randomised_backbone(layers=(11,))
    cut = build_point_backbone(layers=(1, 2), weights="random", seed=9)
    state = full.state_dict()
    cut.load_state_dict({key: state[key] for key in cut.state_dict()})
    cut.encoder.refresh()
    groups, centers = make_cloud(num_groups=20)
    caught = []
    for index in (1, 2):
        full.blocks.blocks[index].register_forward_hook(
            lambda module, inputs, output: caught.append(output)
        )
    with torch.inference_mode():
        full(groups, centers)
        expected = torch.cat([full.norm(tokens) for tokens in caught], dim=-1)
        assert torch.equal(cut(groups, centers), expected)
    assert len(cut.blocks.blocks) == 3


def test_order_of_groups_and_neighbors_does_not_matter():
    network = randomised_backbone(layers=(0,))
    groups, centers = make_cloud()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(groups.shape[1], generator=generator)
    inner = torch.randperm(groups.shape[2], generator=generator)
    with torch.inference_mode():
        expected = network(groups, centers)[:, order]
        shuffled = network(groups[:, order][:, :, inner], centers[:, order])
    torch.testing.assert_close(shuffled, expected, rtol=0, atol=2e-5)


def pooled_statistics(network, clouds):
    """What BatchNorm in train mode sees when all clouds are one batch, in float64."""
    encoder = copy.deepcopy(network.encoder).double().train()
    batch = torch.cat([cloud.double() for cloud in clouds])
    points = batch.transpose(1, 2)
    first, first_norm, relu, wide = encoder.first_conv
    features = first(points)
    first_statistics = features.mean((0, 2)), features.var((0, 2), unbiased=False)
    features = wide(relu(first_norm(features)))
    maxima = features.max(2, keepdim=True)[0].expand_as(features)
    features = encoder.second_conv[0](torch.cat([maxima, features], 1))
    return *first_statistics, features.mean((0, 2)), features.var((0, 2), unbiased=False)


def test_calibration_pools_the_statistics_of_all_clouds():
    network = randomised_backbone(layers=(0,), batch_norm="calibrated")
    clouds = [
        make_cloud(num_groups=30, seed=1, scale=0.004)[0][0],
        make_cloud(num_groups=50, seed=2, scale=0.009)[0][0],
    ]
    expected = pooled_statistics(network, clouds)
    # One-shot iterators and a leading batch axis are taken, too.
    network.calibrate(iter([clouds[0], clouds[1][None]]))
    norms = network.encoder.first_conv[1], network.encoder.second_conv[1]
    found = [getattr(norm, key) for norm in norms for key in ("running_mean", "running_var")]
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), reference, rtol=2e-5, atol=1e-6)


def test_calibrated_on_one_cloud_equals_the_cloud_mode_on_it():
    network = randomised_backbone(layers=(0,), batch_norm="calibrated")
    cloud_mode = randomised_backbone(layers=(0,))
    groups, centers = make_cloud()
    network.calibrate([groups])
    with torch.inference_mode():
        torch.testing.assert_close(
            network(groups, centers), cloud_mode(groups, centers), rtol=0, atol=5e-5
        )


def test_frozen_statistics_do_not_depend_on_the_rest_of_the_cloud():
    groups, _ = make_cloud()
    network = randomised_backbone(layers=(0,), batch_norm="calibrated")
    network.calibrate([groups])
    cloud_mode = randomised_backbone(layers=(0,))
    with torch.inference_mode():
        torch.testing.assert_close(
            network.encoder(groups[:, :5]), network.encoder(groups)[:, :5], rtol=0, atol=1e-5
        )
        part, whole = cloud_mode.encoder(groups[:, :5]), cloud_mode.encoder(groups)[:, :5]
    assert (part - whole).abs().max() > 1e-3


def test_calibration_is_asked_for():
    network = build_point_backbone(layers=(0,), weights="random", batch_norm="calibrated")
    groups, centers = make_cloud(num_groups=4)
    with pytest.raises(InvalidInputError, match=r"no statistics yet; call \.calibrate"):
        network(groups, centers)
    with pytest.raises(InvalidInputError, match="at least one cloud"):
        network.calibrate([])
    cloud_mode = build_point_backbone(layers=(0,), weights="random")
    with pytest.raises(InvalidInputError, match=r"batch_norm is 'cloud'; only .*='calibrated'"):
        cloud_mode.calibrate([groups])


def test_random_checkpoint_statistics_are_zero_and_one():
    network = build_point_backbone(layers=(0,), weights="random", batch_norm="checkpoint")
    norm = network.encoder.second_conv[1]
    assert torch.equal(norm.running_mean, torch.zeros(512))
    assert torch.equal(norm.running_var, torch.ones(512))


def test_forward_leaves_the_running_statistics_alone():
    network = randomised_backbone(layers=(0,))
    before = copy.deepcopy(network.state_dict())
    network(*make_cloud(num_groups=8))
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_seeded_drop_path_repeats_with_its_seed_and_drops_whole_branches():
    network = build_point_backbone(layers=(11,), weights="random", drop_path="seeded", seed=3)
    groups, centers = make_cloud(num_groups=6)
    with torch.inference_mode():
        first = [network(groups, centers) for _ in range(8)]
        network.reseed(3)
        again = [network(groups, centers) for _ in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(first[0], other) for other in first[1:])


def test_drop_path_draws_with_the_published_probabilities():
    network = build_point_backbone(layers=(11,), weights="random", drop_path="seeded", seed=0)
    branch = torch.ones(4000, 1, 1)
    for index, expected in ((0, 0.0), (5, 0.1 * 5 / 11), (11, 0.1)):
        dropped = network.blocks.blocks[index].drop_path(branch)
        share = float((dropped == 0).float().mean())
        assert abs(share - expected) < 0.015
        kept = dropped[dropped != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - expected)))


def test_blocks_without_drop_path_have_none():
    network = build_point_backbone(layers=(1,), weights="random")
    assert all(isinstance(block.drop_path, nn.Identity) for block in network.blocks.blocks)
