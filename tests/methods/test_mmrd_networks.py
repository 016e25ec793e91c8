"""The students' networks: published sizes and keys, and MMRD's equations in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.family import get_method
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.mmrd.modulation import Modulation, fusion_weight
from mmad_fast.methods.mmrd.networks import Decoder, OneClassBottleneck, flattened_distance
from mmad_fast.methods.mmrd.options import MmrdOptions
from mmad_fast.methods.mmrd.student import Interaction, Prototypes, build_student
from mmad_fast.methods.mmrd.trd_student import FusingBottleneck, GatedDecoder

PUBLISHED_SHAPES = ((256, 64, 64), (512, 32, 32), (1024, 16, 16))
SHAPES = ((4, 16, 16), (8, 8, 8), (16, 4, 4))


@dataclass(frozen=True)
class SmallOptions(MmrdOptions):
    """Of a teacher with small maps."""

    @property
    def level_shapes(self):
        return SHAPES


def small(method, **options):
    """The student of a method, in evaluation mode, of small maps."""
    _, variant = get_method(method)
    chosen = SmallOptions(**{**variant.values, "prototypes": (5, 6, 7), **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_student(chosen).eval()


def maps(seed, shapes=SHAPES, batch=1):
    """A modality's maps, as behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator).relu() for shape in shapes]


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def softmax(values, axis):
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


# --- Sizes and keys of the published networks ---


def published(method):
    """The students with the published maps, without memory for their weights."""
    _, variant = get_method(method)
    with torch.device("meta"):
        return build_student(MmrdOptions(**variant.values).with_constants())


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def giga_products(module, *inputs):
    """Multiply-adds of a module's convolutions."""
    total = 0

    def count(layer, given, made):
        nonlocal total
        # A transposed convolution uses each weight at each place of its input.
        places = given[0] if isinstance(layer, nn.ConvTranspose2d) else made
        total += layer.weight.numel() * places.shape[-1] * places.shape[-2] / 1e9

    handles = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    module(*inputs)
    for handle in handles:
        handle.remove()
    return total


def meta_maps():
    return [torch.empty(1, *shape, device="meta") for shape in PUBLISHED_SHAPES]


def test_rd_has_the_published_size():
    """Source: method facts 8.1."""
    student = published("rd").eval()
    assert millions(student.bn) == pytest.approx(58.9, abs=0.05)
    assert millions(student.decoder) == pytest.approx(24.9, abs=0.05)
    assert giga_products(student.bn, meta_maps()) == pytest.approx(7.3, abs=0.05)
    embedding = torch.empty(1, 2048, 8, 8, device="meta")
    assert giga_products(student.decoder, embedding) == pytest.approx(11.14, abs=0.005)


def test_trd_has_the_published_size():
    """Source: method facts 8.3."""
    student = published("trd").students["rgb"].eval()
    parts = {"projector_filter": 59.79, "projector_amply": 17.91, "bn": 90.74, "decoder": 24.92}
    for name, size in parts.items():
        assert millions(student.get_submodule(name)) == pytest.approx(size, abs=0.006), name
    assert millions(student) == pytest.approx(193.36, abs=0.006)
    assert giga_products(student.projector_filter, meta_maps()) == pytest.approx(6.44, abs=0.006)
    assert giga_products(student.projector_amply, meta_maps()) == pytest.approx(10.47, abs=0.006)
    products = giga_products(student.bn, meta_maps(), meta_maps())
    assert products == pytest.approx(18.19, abs=0.006)
    whole = giga_products(student, meta_maps(), meta_maps())
    assert whole == pytest.approx(46.24, abs=0.01)


RD4AD_KEYS = {
    "bn.conv1.weight": (512, 256, 3, 3),
    "bn.conv2.weight": (1024, 512, 3, 3),
    "bn.conv3.weight": (1024, 512, 3, 3),
    "bn.bn_layer.0.conv1.weight": (1024, 3072, 1, 1),
    "bn.bn_layer.0.conv2.weight": (1024, 1024, 3, 3),
    "bn.bn_layer.0.conv3.weight": (2048, 1024, 1, 1),
    "bn.bn_layer.0.downsample.0.weight": (2048, 3072, 1, 1),
    "bn.bn_layer.0.downsample.1.weight": (2048,),
    "bn.bn_layer.2.conv1.weight": (1024, 2048, 1, 1),
}
DECODER_KEYS = {
    "decoder.layer1.0.conv1.weight": (512, 2048, 1, 1),
    "decoder.layer1.0.conv2.weight": (512, 512, 2, 2),
    "decoder.layer1.0.conv3.weight": (1024, 512, 1, 1),
    "decoder.layer1.0.upsample.0.weight": (2048, 1024, 2, 2),
    "decoder.layer1.0.upsample.1.running_mean": (1024,),
    "decoder.layer1.2.conv2.weight": (512, 512, 3, 3),
    "decoder.layer2.0.upsample.0.weight": (1024, 512, 2, 2),
    "decoder.layer2.3.conv1.weight": (256, 512, 1, 1),
    "decoder.layer3.0.upsample.0.weight": (512, 256, 2, 2),
    "decoder.layer3.5.conv3.weight": (256, 128, 1, 1),
}
TRD_KEYS = {
    "bn.conv1.weight": (1024, 512, 3, 3),
    "bn.conv2.weight": (1024, 1024, 3, 3),
    "bn.conv3.weight": (1024, 1024, 3, 3),
    "bn.conv4.weight": (1024, 2048, 3, 3),
    "bn.bn4.running_var": (1024,),
    "bn.bn_layer.0.conv1.weight": (1024, 3072, 1, 1),
    "decoder.w_a": (2,),
    "decoder.w_b": (2,),
    "decoder.w_c": (2,),
    **{
        f"projector_filter.conv_{level}.{number}.weight": shape
        for level, shapes in {
            "a": [
                *[(512, 256, 2, 2), (1024, 512, 2, 2), (2048, 1024, 2, 2)],
                *[(2048, 1024, 2, 2), (1024, 512, 2, 2), (512, 256, 2, 2)],
            ],
            "b": [
                *[(1024, 512, 2, 2), (2048, 1024, 2, 2)],
                *[(2048, 1024, 2, 2), (1024, 512, 2, 2)],
            ],
            "c": [(2048, 1024, 2, 2), (2048, 1024, 2, 2)],
        }.items()
        for number, shape in zip(range(0, 18, 3), shapes, strict=False)
    },
    "projector_filter.conv_a.16.running_mean": (256,),
    **{
        f"projector_amply.conv_{level}.{number}.weight": shape
        for level, count in {"a": 256, "b": 512, "c": 1024}.items()
        for number, shape in {
            0: (count, count, 3, 3),
            3: (2 * count, count, 1, 1),
            6: (count, 2 * count, 1, 1),
            7: (count,),
        }.items()
    },
}


@pytest.mark.parametrize(
    ("method", "prefix", "expected"),
    [("rd", "", RD4AD_KEYS | DECODER_KEYS), ("trd", "students.aux.", TRD_KEYS | DECODER_KEYS)],
)
def test_keys_are_those_of_the_public_code(method, prefix, expected):
    found = {key: tuple(value.shape) for key, value in published(method).state_dict().items()}
    for key, shape in expected.items():
        assert found.get(prefix + key) == shape, key
    convolutions = {key for key, shape in found.items() if len(shape) == 4}
    assert not {key.replace("weight", "bias") for key in convolutions} & found.keys()


# --- MMRD's equations ---


def test_the_loss_is_that_of_whole_maps():
    """Equation 1: over channels and places at once, not place by place."""
    targets, restored = maps(1, batch=3), maps(2, batch=3)
    expected = 0.0
    for target, found in zip(targets, restored, strict=True):
        rows, others = array(target).reshape(3, -1), array(found).reshape(3, -1)
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
        expected += np.mean(1 - (rows * others).sum(1) / norms)
    assert flattened_distance(targets, restored).item() == pytest.approx(expected, rel=1e-5)


def alpha(features):
    """Equation 2."""
    mean = features.mean((2, 3), keepdims=True)
    variance = ((features - mean) ** 2).mean((2, 3), keepdims=True)
    return sigmoid((features - mean) ** 2 / (variance + 1e-4))


def test_the_fusion_weight_is_equation_2():
    features = maps(1, batch=2)[1]
    found = fusion_weight(features)
    np.testing.assert_allclose(array(found), alpha(array(features)), rtol=1e-5)
    assert found.min() >= 0.5
    assert found.max() <= 1
    constant = torch.full((1, 2, 5, 7), 3.5)
    assert torch.equal(fusion_weight(constant), torch.full_like(constant, 0.5))


def test_fusions():
    """Equation 3, and what Table 2e compares it with."""
    rgb, auxiliary = maps(1, batch=2)[1], maps(2, batch=2)[1]
    r, a = array(rgb), array(auxiliary)
    flat = r.reshape(2, 8, -1), a.reshape(2, 8, -1)
    channels = softmax(flat[0] @ flat[1].transpose(0, 2, 1) / np.sqrt(64), -1) @ flat[1]
    places = softmax(flat[0].transpose(0, 2, 1) @ flat[1] / np.sqrt(8), -1)
    expected = {
        "sum": r + alpha(r + a) * a,
        "auxiliary": r + alpha(a) * a,
        "constant": r + a,
        "csa": r + channels.reshape(a.shape),
        "ssa": r + (flat[1] @ places.transpose(0, 2, 1)).reshape(a.shape),
    }
    for fusion, target in expected.items():
        fuse = Modulation(fusion, 8)
        found = fuse([rgb, auxiliary])
        np.testing.assert_allclose(array(found), target, rtol=1e-5, atol=1e-6, err_msg=fusion)
        assert not list(fuse.parameters())
        assert torch.equal(fuse([rgb]), rgb)


def test_the_excitation_weighs_channels_by_the_sum():
    rgb, auxiliary = maps(1)[1], maps(2)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fuse = Modulation("se", 8, reduction=4)
    r, a = array(rgb), array(auxiliary)
    expected = r + excitation(fuse.excitation, r + a) * a
    np.testing.assert_allclose(array(fuse([rgb, auxiliary])), expected, rtol=1e-5)


def excitation(attention, features):
    """Squeeze and excitation (B, C, 1, 1) with a module's weights."""
    means = features.mean((2, 3))
    reduce, expand = attention.reduce, attention.expand
    hidden = np.maximum(means @ array(reduce.weight)[:, :, 0, 0].T + array(reduce.bias), 0)
    return sigmoid(hidden @ array(expand.weight)[:, :, 0, 0].T + array(expand.bias))[
        ..., None, None
    ]


def test_of_several_auxiliary_pictures_each_is_added():
    rgb, depth, normals = (maps(seed)[1] for seed in (1, 2, 3))
    r, d, n = map(array, (rgb, depth, normals))
    found = Modulation("sum", 8)([rgb, depth, normals])
    weight = alpha(r + d + n)
    np.testing.assert_allclose(array(found), r + weight * d + weight * n, rtol=1e-5)


def prior(rows, features):
    """Equations 4 and 5."""
    made = np.zeros_like(features)
    for b, h, w in np.ndindex(features.shape[0], *features.shape[2:]):
        place = features[b, :, h, w]
        norms = np.linalg.norm(rows, axis=1) * max(np.linalg.norm(place), 1e-12)
        made[b, :, h, w] = softmax(rows @ place / norms, 0) @ rows
    return made


def test_priors_are_equations_4_to_6():
    prototypes = Prototypes(5, 8)
    features = maps(1, batch=2)[1]
    features[0, :, 0, 0] = 0  # no direction: every prototype is as like it
    rows = array(prototypes.rows)
    expected = prior(rows, array(features))
    np.testing.assert_allclose(array(prototypes(features)), expected, rtol=1e-4, atol=1e-5)
    loss = np.mean((array(features) - expected) ** 2)
    assert prototypes.loss(features).item() == pytest.approx(loss, rel=1e-5)


@torch.inference_mode()
def test_a_place_without_direction_is_one_in_half_precision_too():
    prototypes = Prototypes(5, 8).half()
    found = prototypes(torch.zeros(1, 8, 2, 2, dtype=torch.float16))
    mean = prototypes.rows.float().mean(0)
    torch.testing.assert_close(found[0, :, 1, 1].float(), mean, rtol=0, atol=5e-3)


def test_the_interaction_is_equation_7():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        interaction = Interaction(8, 1, 2)
    rgb, auxiliary = maps(1)[1], maps(2)[1]
    r = array(rgb)
    (convolution,) = interaction.spatial
    largest = auxiliary.amax(dim=1, keepdim=True)
    spatial = sigmoid(array(F.conv2d(largest, convolution.weight, convolution.bias, padding=1)))
    expected = spatial * (excitation(interaction.channel, r) * r + r) + r
    np.testing.assert_allclose(array(interaction([rgb, auxiliary])), expected, rtol=1e-5)


@torch.inference_mode()
def test_a_stage_reads_its_map_and_the_prior_of_its_level():
    """Equation 8."""
    student = small("mmrd")
    levels = [maps(1), maps(2)]
    read = {}
    for number in (1, 2, 3):
        stage = student.decoder.get_submodule(f"layer{number}")
        stage.register_forward_pre_hook(
            lambda _, given, number=number: read.__setitem__(number, given[0])
        )
    ((targets, restored),) = student(levels)
    for level, (rgb, auxiliary) in enumerate(zip(*levels, strict=True)):
        r, a = array(rgb), array(auxiliary)
        expected = r + alpha(r + a) * a
        np.testing.assert_allclose(array(targets[level]), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(read[1], student.bn(targets))
    for number, level in ((2, 2), (3, 1)):
        priors = [
            student.prototypes[modality][level](levels[modality][level]) for modality in (0, 1)
        ]
        joined = student.interaction[level - 1](priors)
        assert torch.equal(read[number], torch.cat([restored[level], joined], dim=1))
    # The shallowest level's prototypes are learned, and not read.
    for of_modality in student.prototypes:
        of_modality[0].rows.fill_(float("nan"))
    assert torch.equal(student(levels)[0].restored[0], restored[0])


@torch.inference_mode()
def test_the_loss_is_equation_9():
    student = small("mmrd", prior_weight=0.25)
    levels = [maps(1, batch=2), maps(2, batch=2)]
    ((targets, restored),) = student(levels)
    expected = flattened_distance(targets, restored).item()
    assert student.distillation_loss(levels).item() == pytest.approx(expected, rel=1e-6)
    for of_modality, features in zip(student.prototypes, levels, strict=True):
        for prototypes, one in zip(of_modality, features, strict=True):
            made = prior(array(prototypes.rows), array(one))
            expected += 0.25 * np.mean((array(one) - made) ** 2)
    assert student.loss(levels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "chosen"),
    [("mmrd", {"interaction": False}), ("mmrd", {"prototypes": (0,)}), ("mmfd", {})],
)
def test_the_reduction_is_that_of_the_excitation_too(method, chosen):
    """It is refused where nothing has such a layer."""
    chosen = {**chosen, "attention_reduction": 8}
    with pytest.raises(InvalidInputError, match="attention_reduction changes nothing"):
        resolve_options(FitRequest(method, options=chosen))
    options = resolve_options(FitRequest(method, options={**chosen, "fusion": "se"}))
    with torch.device("meta"):
        student = build_student(options)
    assert student.modulation[2].excitation.reduce.out_channels == 1024 // 8


@torch.inference_mode()
def test_switches_of_the_priors():
    levels = [maps(1), maps(2)]
    student = small("mmrd", prototypes=(0, 0, 0))
    plain = small("rd")
    own = {key for key, _ in student.named_parameters()}
    assert own == {key for key, _ in plain.named_parameters()}  # "teacher only"
    assert student.loss(levels) == student.distillation_loss(levels)
    student = small("mmrd", interaction=False)
    read = []
    student.decoder.layer3.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    ((_, restored),) = student(levels)
    priors = [student.prototypes[m][1](levels[m][1]) for m in (0, 1)]
    assert torch.equal(read[0], torch.cat([restored[1], priors[0] + priors[1]], dim=1))
    student = small("mmrd", prototypes=(5, 0, 7))
    assert student.decoder.layer3[0].conv1.in_channels == SHAPES[1][0]
    assert student.decoder.layer2[0].conv1.in_channels == 2 * SHAPES[2][0]
    student(levels)


@torch.inference_mode()
@pytest.mark.parametrize("bottleneck_input", ["fused", "rgb"])
def test_what_the_bottleneck_reads(bottleneck_input):
    student = small("mmrd", bottleneck_input=bottleneck_input)
    levels = [maps(1), maps(2)]
    read = []
    student.bn.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    ((targets, _),) = student(levels)
    expected = targets if bottleneck_input == "fused" else levels[0]
    assert all(torch.equal(*pair) for pair in zip(read[0], expected, strict=True))


@torch.inference_mode()
def test_one_modality_is_its_own_target_with_its_prior():
    student = small("mmrd-rgb")
    levels = [maps(1)]
    read = []
    student.decoder.layer2.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    ((targets, restored),) = student(levels)
    assert all(torch.equal(*pair) for pair in zip(targets, levels[0], strict=True))
    own = student.prototypes[0][2](levels[0][2])
    assert torch.equal(read[0], torch.cat([restored[2], own], dim=1))


def test_prototypes_begin_as_places_of_the_maps():
    student = small("mmrd", prototypes=(5, 6, 40))
    generator = torch.Generator().manual_seed(0)
    levels = [[torch.rand(2, *shape, generator=generator) for shape in SHAPES] for _ in range(2)]
    student.initialise_prototypes(levels)
    for of_modality, features in zip(student.prototypes, levels, strict=True):
        for prototypes, one in zip(of_modality, features, strict=True):
            places = {tuple(row) for row in one.movedim(1, -1).flatten(0, 2).tolist()}
            rows = [tuple(row) for row in prototypes.rows.tolist()]
            assert set(rows) <= places
            assert len(set(rows)) == min(len(rows), len(places))


# --- TRD ---


@torch.inference_mode()
def test_a_stage_reads_what_the_amplifier_was_added_to():
    decoder = GatedDecoder(SHAPES, student_width=1.0, is_signed=False).eval()
    embedding = torch.randn(1, 32, 2, 2, generator=torch.Generator().manual_seed(0))
    amplified = maps(1)
    decoder.w_b.copy_(torch.tensor([0.0, np.log(3)]))
    alone, both = decoder.restore(embedding, amplified)
    features = embedding
    shares = {1: (0.5, 0.5), 2: (0.25, 0.75), 3: (0.5, 0.5)}
    for number, (own, other) in shares.items():
        level = 3 - number
        torch.testing.assert_close(alone[level], decoder.stage(number, features))
        features = own * alone[level] + other * amplified[level]
        torch.testing.assert_close(both[level], features)


@torch.inference_mode()
def test_the_bottleneck_reads_its_own_maps_first():
    bottleneck = FusingBottleneck(SHAPES, student_width=1.0).eval()
    for convolution in (bottleneck.conv1, bottleneck.conv3, bottleneck.conv4):
        convolution.weight[:, convolution.in_channels // 2 :] = 0
    own = maps(1)
    assert torch.equal(bottleneck(own, maps(2)), bottleneck(own, maps(3)))
    assert not torch.equal(bottleneck(maps(2), own), bottleneck(maps(3), own))


def test_each_student_restores_its_modality_from_both():
    students = small("trd")
    levels = [maps(1, batch=2), maps(2, batch=2)]
    comparisons = students(levels)
    for index, name in enumerate(("rgb", "aux")):
        student = students.students[name]
        restored = list(student(levels[index], levels[1 - index]))
        assert len(restored) == 4
        targets, found = comparisons[index]
        assert all(map(torch.equal, targets, levels[index]))
        assert all(map(torch.equal, found, restored[0]))
        filtered = student.projector_filter(levels[1 - index])
        amplified = student.projector_amply(levels[1 - index])
        assert all(map(torch.equal, restored[2], filtered))
        assert all(map(torch.equal, restored[3], amplified))
        for made in restored:
            assert [one.shape[1:] for one in made] == [torch.Size(one) for one in SHAPES]
    expected = sum(
        flattened_distance(levels[index], one)
        for index, name in enumerate(("rgb", "aux"))
        for one in students.students[name](levels[index], levels[1 - index])
    )
    assert students.loss(levels).item() == pytest.approx(expected.item(), rel=1e-6)
    compared = sum(flattened_distance(*one) for one in comparisons)
    assert students.distillation_loss(levels).item() == pytest.approx(compared.item(), rel=1e-6)
    # Nothing is detached: what is compared trains the amplifier and the gates.
    compared.backward()
    trained = {key for key, value in students.named_parameters() if value.grad is not None}
    assert trained == {key for key, _ in students.named_parameters()}


# --- Other teachers ---


@torch.inference_mode()
def test_maps_of_one_size_are_restored_at_that_size():
    """As of a vision transformer, whose maps may be negative."""
    shapes = ((12, 6, 6),) * 3
    bottleneck = OneClassBottleneck(shapes).eval()
    decoder = Decoder(shapes, is_signed=True).eval()
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, *shape, generator=generator) for shape in shapes]
    embedding = bottleneck(levels)
    assert embedding.shape == (1, 24, 3, 3)
    restored = decoder(embedding)
    assert [tuple(one.shape[1:]) for one in restored] == list(shapes)
    assert all(one.min() < 0 for one in restored)
    assert all(one.min() >= 0 for one in Decoder(shapes).eval()(embedding))
