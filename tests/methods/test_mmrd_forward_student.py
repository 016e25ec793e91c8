"""Forward distillation: the student that reads the pictures."""

from __future__ import annotations

import pytest
import torch

from mmad_fast.backbones import build_cnn_backbone
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.mmrd.modulation import Modulation
from mmad_fast.methods.mmrd.student import build_student


def build(method, **options):
    chosen = resolve_options(FitRequest(method=method, options=options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return chosen, build_student(chosen)


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_a_network_like_the_teacher():
    options, student = build("fd")
    teacher = build_cnn_backbone(options.rgb_backbone, outputs=options.levels, weights="random")
    shapes = {key: value.shape for key, value in teacher.state_dict().items()}
    assert {key: value.shape for key, value in student.network.state_dict().items()} == shapes
    assert all(parameter.requires_grad for parameter in student.parameters())


@torch.inference_mode()
def test_both_pictures_are_restored_and_fused_as_the_teachers_maps_are():
    options, student = build("mmfd", student_width=0.125, fusion="auxiliary")
    student.eval()
    pictures = [noise(seed, 1, 3, 256, 256) for seed in (1, 2)]
    levels = [[noise(seed, 1, *shape).abs() for shape in options.level_shapes] for seed in (3, 4)]
    (found,) = student(levels, pictures)
    rgb, auxiliary = (student.network(picture) for picture in pictures)
    for level, shape in enumerate(options.level_shapes):
        fuse = Modulation("auxiliary", shape[0])
        expected = fuse([levels[0][level], levels[1][level]])
        torch.testing.assert_close(found.targets[level], expected)
        restored = fuse([rgb[level], auxiliary[level]])
        torch.testing.assert_close(found.restored[level], restored, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_graph_without_targets_needs_no_maps():
    _, student = build("fd", student_width=0.125)
    student.eval()
    picture = noise(0, 1, 3, 256, 256)
    (found,) = student([], [picture])
    assert found.targets == ()
    maps = student.network(picture)
    assert all(torch.equal(*pair) for pair in zip(found.restored, maps, strict=True))


def test_what_is_minimised_falls():
    options, student = build("fd", student_width=0.125)
    picture = noise(0, 2, 3, 256, 256)
    levels = [[noise(1, 2, *shape).abs() for shape in options.level_shapes]]
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = student.loss(levels, [picture])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_a_vision_transformer_is_refused():
    with pytest.raises(InvalidInputError, match="a network like the teacher; choose a wide ResNet"):
        build("fd", rgb_backbone="dinov2-vits14")
