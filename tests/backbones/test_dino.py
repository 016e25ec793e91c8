"""The vision transformers against transformers' own implementations."""

import re

import numpy as np
import pytest
import torch

from mmad_fast.backbones import build_rgb_backbone
from mmad_fast.backbones.dino import VisionTransformer, resize_position_embedding
from mmad_fast.backbones.table import RGB_BACKBONES, RgbSpec

transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")

# transformers' names, old and new, and the official ones.
RENAMES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"(encoder\.layers?|layers)\.", "blocks."),
    (r"attention\.(attention\.query|q_proj)\.", "attn.q."),
    (r"attention\.(attention\.key|k_proj)\.", "attn.k."),
    (r"attention\.(attention\.value|v_proj)\.", "attn.v."),
    (r"attention\.(output\.dense|o_proj)\.", "attn.proj."),
    (r"(layernorm_before|norm1)\.", "norm1."),
    (r"(layernorm_after|norm2)\.", "norm2."),
    (r"(intermediate\.dense|mlp\.fc1)\.", "mlp.fc1."),
    (r"(?<!attention\.)(output\.dense|mlp\.fc2)\.", "mlp.fc2."),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


def copy_weights(peer, network):
    """Fills the peer with the network's weights; every one of its keys must be found."""
    state = dict(network.state_dict())
    for key in [key for key in state if ".attn.qkv." in key]:
        parts = state.pop(key).chunk(3)
        for letter, part in zip("qkv", parts, strict=True):
            state[key.replace("qkv", letter)] = part
    renamed = {}
    for key in peer.state_dict():
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if not name.endswith("mask_token"):
            renamed[key] = state.pop(name)
    assert not state, f"weights the peer does not have: {list(state)}"
    result = peer.load_state_dict(renamed, strict=False)
    assert all("mask_token" in key for key in result.missing_keys)
    return peer.eval()


def make_peer(network, spec: RgbSpec):
    common = {
        "hidden_size": spec.dim,
        "num_hidden_layers": network.num_layers,
        "num_attention_heads": spec.num_heads,
        "image_size": network.image_size,
        "patch_size": spec.patch_size,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    }
    if spec.layer_scale:
        peer = transformers.Dinov2Model(transformers.Dinov2Config(mlp_ratio=4, **common))
    else:
        config = transformers.ViTConfig(intermediate_size=4 * spec.dim, **common)
        peer = transformers.ViTModel(config, add_pooling_layer=False)
    return copy_weights(peer, network)


def randomise(network, seed=0):
    """Gives every parameter, norms and scales included, a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            is_factor = ("norm" in key and key.endswith("weight")) or key.endswith("gamma")
            value.copy_(1 + 0.1 * noise if is_factor else 0.05 * noise)
    return network.eval()


@pytest.mark.parametrize("layer_scale", [False, True], ids=["dino", "dinov2"])
def test_small_network_equals_transformers(layer_scale):
    spec = RgbSpec("small", 4, 48, 3, 3, 20, 5, layer_scale)
    network = randomise(VisionTransformer(spec, num_layers=3, image_size=20))
    image = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = make_peer(network, spec)(image).last_hidden_state[:, 1:]
        tokens = network(image)
    assert tokens.shape == (2, 25, 48)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["dino-vitb8", "dinov2-vits14"])
def test_full_size_network_of_two_layers_equals_transformers(name):
    network = build_rgb_backbone(name, num_layers=2, weights="random", seed=3)
    size = network.image_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = make_peer(network, RGB_BACKBONES[name])(image).last_hidden_state[:, 1:]
        tokens = network(image)
    assert tokens.shape == (1, 784, network.dim)
    assert network.token_grid == 28
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-4)


def test_real_dinov2_features_equal_transformers(real_dinov2_weights):
    network = build_rgb_backbone("dinov2-vits14", num_layers=12, weights=real_dinov2_weights)
    y, x = np.mgrid[:392, :392] / 392
    picture = np.stack([np.sin(9 * x), np.cos(7 * y), x * y])[None].astype(np.float32)
    image = torch.from_numpy(picture)
    with torch.inference_mode():
        peer = make_peer(network, RGB_BACKBONES["dinov2-vits14"])
        expected = peer(image).last_hidden_state[:, 1:]
        tokens = network(image)
    assert torch.isfinite(tokens).all()
    assert tokens.std() > 0.5  # real features, not collapsed ones
    scale = expected.abs().max()
    assert (tokens - expected).abs().max() <= 1e-4 * scale


def cubic_matrix(size_out: int, size_in: int, scale: float) -> np.ndarray:
    """Cubic convolution (a = -0.75), half-pixel centres, edges repeated, from its formula."""
    matrix = np.zeros((size_out, size_in))
    for row in range(size_out):
        position = (row + 0.5) / scale - 0.5
        base = int(np.floor(position))
        for offset in range(-1, 3):
            t, a = abs(position - (base + offset)), -0.75
            if t <= 1:
                weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
            else:
                weight = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            matrix[row, np.clip(base + offset, 0, size_in - 1)] += weight
    return matrix


def test_position_embedding_is_resized_as_dinov2_does():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(1, 1 + 37 * 37, 6, generator=generator)
    resized = resize_position_embedding(embedding, 28)
    matrix = cubic_matrix(28, 37, 28.1 / 37)  # DINOv2 adds 0.1 before it computes the scale
    plane = embedding[0, 1:].double().numpy().reshape(37, 37, 6)
    expected = np.einsum("ip,jq,pqc->ijc", matrix, matrix, plane).reshape(784, 6)
    assert resized.shape == (1, 785, 6)
    assert torch.equal(resized[:, 0], embedding[:, 0])
    np.testing.assert_allclose(resized[0, 1:].numpy(), expected, rtol=0, atol=1e-5)


def test_position_embedding_of_the_same_grid_is_left_alone():
    embedding = torch.randn(1, 785, 4)
    assert resize_position_embedding(embedding, 28) is embedding


def test_resizing_happens_at_load(fake_state, save):
    state = fake_state("dinov2-vits14")
    plane = torch.randn(1, 1370, 384, generator=torch.Generator().manual_seed(4))
    state["pos_embed"] = plane
    network = build_rgb_backbone("dinov2-vits14", num_layers=1, weights=save(state))
    assert torch.equal(network.pos_embed, resize_position_embedding(plane, 28))


def test_cutting_equals_the_full_network_stopped_there():
    spec = RgbSpec("small", 4, 48, 3, 4, 20, 5, False)
    full = randomise(VisionTransformer(spec, num_layers=4, image_size=20))
    cut = VisionTransformer(spec, num_layers=2, image_size=20).eval()
    cut.load_state_dict({k: v for k, v in full.state_dict().items() if k in cut.state_dict()})
    image = torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    caught = []
    full.blocks[1].register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.inference_mode():
        full(image)
        expected = full.norm(caught[0])[:, 1:]
        assert torch.equal(cut(image), expected)
        second, last = full.tokens_after(image, (2, 4))
        assert torch.equal(second, expected)
        assert torch.equal(last, full(image))


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(11)
    expected_draw = torch.rand(1)
    torch.manual_seed(11)
    first = build_rgb_backbone("dinov2-vits14", num_layers=1, weights="random", seed=1)
    assert torch.equal(torch.rand(1), expected_draw)
    again = build_rgb_backbone("dinov2-vits14", num_layers=1, weights="random", seed=1)
    other = build_rgb_backbone("dinov2-vits14", num_layers=1, weights="random", seed=2)
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert first.weights_source.kind == "random"
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert not first.training
