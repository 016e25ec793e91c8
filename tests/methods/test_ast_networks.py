"""Teacher and student: published keys and sizes, permutations, the flow's determinant, folding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmad_fast.methods.ast.networks import (
    CLAMP,
    SquaredDifference,
    Student,
    Teacher,
    build_networks,
    channel_permutations,
    position_encoding,
)
from mmad_fast.methods.ast.options import AstOptions
from mmad_fast.methods.network_tensors import load_tensors, to_tensors


def random_networks(
    channels: int = 6, *, hidden: int = 5, student: int = 7, seed: int = 0
) -> tuple[Teacher, Student]:
    """Small networks in evaluation mode whose parameters and statistics are all random."""
    torch.manual_seed(seed)
    networks = build_networks(
        channels, teacher_channels=hidden, student_channels=student, student_blocks=2
    )
    for network in networks:
        for name, tensor in network.eval().state_dict().items():
            if tensor.is_floating_point():
                spread = torch.rand_like(tensor) + 0.5
                tensor.copy_(spread if "var" in name else 0.3 * torch.randn_like(tensor))
    return networks


def test_keys_and_shapes_are_the_published_ones() -> None:
    options = AstOptions()
    assert options.channels == 368
    with torch.device("meta"):
        teacher = Teacher(368, 64, channel_permutations(368))
        student = Student(368, 1024, 4)
    shapes = {key: tuple(tensor.shape) for key, tensor in teacher.state_dict().items()}
    expected = {}
    for number, kernel in ((3, 3), (5, 3), (7, 3), (9, 5)):
        for subnet in ("s1", "s2"):
            prefix = f"module_list.{number}.{subnet}"
            expected[f"{prefix}.gamma"] = (1,)
            expected[f"{prefix}.conv1.weight"] = (64, 216, kernel, kernel)
            expected[f"{prefix}.conv1.bias"] = (64,)
            expected[f"{prefix}.conv2.weight"] = (368, 64, kernel, kernel)
            expected[f"{prefix}.conv2.bias"] = (368,)
    assert shapes == expected
    assert sum(map(math.prod, shapes.values())) == pytest.approx(3.9e6, rel=0.02)
    keys = set(student.state_dict())
    assert {
        "gamma",
        "conv1.weight",
        "conv2.bias",
        "res.3.l2.weight",
        "res.0.bn1.running_var",
    } < keys
    assert student.conv1.weight.shape == (1024, 400, 3, 3)
    assert sum(p.numel() for p in student.parameters()) == pytest.approx(82.6e6, rel=0.001)


def test_permutations_are_those_of_numpys_seeds() -> None:
    found = channel_permutations(368)
    for seed in range(4):
        np.random.seed(seed)  # noqa: NPY002 - as the published code draws them
        np.testing.assert_array_equal(found[seed], np.random.permutation(368))  # noqa: NPY002


def test_the_encoding_is_that_of_its_formula() -> None:
    encoding = position_encoding(5).numpy()
    assert encoding.shape == (32, 5, 5)
    for pair in range(8):
        frequency = 1e4 ** (-2 * pair / 16)
        for row in range(5):
            for column in range(5):
                found = encoding[:, row, column]
                angles = (column * frequency, row * frequency)
                expected = [f(angle) for angle in angles for f in (math.sin, math.cos)]
                places = [2 * pair, 2 * pair + 1, 16 + 2 * pair, 17 + 2 * pair]
                np.testing.assert_allclose(found[places], expected, atol=1e-6)


def test_an_untrained_teacher_only_permutes() -> None:
    teacher, _ = build_networks(6, teacher_channels=4, student_channels=4, student_blocks=1)
    x = torch.randn(2, 6, 3, 3)
    z, logarithm = teacher(x, position_encoding(3).expand(2, -1, -1, -1))
    expected = x
    for order in channel_permutations(6):
        expected = expected[:, order.tolist()]
    torch.testing.assert_close(z, expected, rtol=0, atol=0)
    assert not logarithm.any()


def test_the_logarithm_is_that_of_the_jacobians_determinant() -> None:
    teacher, _ = random_networks()
    teacher.double()
    positions = position_encoding(3)[None].double()
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    _, logarithm = teacher(x, positions)
    jacobian = torch.autograd.functional.jacobian(lambda flat: teacher(flat, positions)[0], x)
    expected = torch.linalg.slogdet(jacobian.reshape(54, 54))[1]
    assert abs(float(expected)) > 1
    torch.testing.assert_close(logarithm.sum(), expected, rtol=1e-6, atol=0)


def test_factors_of_the_couplings_are_bounded() -> None:
    teacher, _ = random_networks()
    with torch.no_grad():
        for block in teacher.module_list.values():
            block.s1.conv2.bias.fill_(1e6)
    _, logarithm = teacher(torch.zeros(1, 6, 3, 3), position_encoding(3)[None])
    assert logarithm.abs().max() < 4 * 6 * CLAMP * 0.636 * math.pi / 2 + 1e-3


def test_the_folded_network_is_the_same_function() -> None:
    teacher, student = random_networks()
    teacher.double(), student.double()
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    positions = position_encoding(4)[None].double()
    with torch.no_grad():
        expected = (teacher(x, positions)[0] - student(x, positions)).square().mean(1)
        before = {key: value.clone() for key, value in teacher.state_dict().items()}
        found = SquaredDifference(teacher, student, 4).double()(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])


def test_tensors_bring_the_networks_back() -> None:
    teacher, student = random_networks()
    tensors = {**to_tensors(teacher, "teacher."), **to_tensors(student, "student.")}
    again = build_networks(6, teacher_channels=5, student_channels=7, student_blocks=2)
    for network, prefix in zip(again, ("teacher.", "student."), strict=True):
        load_tensors(network.eval(), tensors, prefix)
    x, positions = torch.randn(1, 6, 3, 3), position_encoding(3)[None]
    torch.testing.assert_close(again[0](x, positions)[0], teacher(x, positions)[0])
    torch.testing.assert_close(again[1](x, positions), student(x, positions))
    del tensors["student.conv1.bias"]
    with pytest.raises(RuntimeError, match=r"conv1\.bias"):
        load_tensors(again[1], tensors, "student.")
