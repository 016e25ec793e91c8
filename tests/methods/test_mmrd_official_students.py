"""Students from files in the layout of RD4AD's and TRD's public code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmad_fast.errors import InvalidInputError, WeightsError
from mmad_fast.methods.family import get_method
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.mmrd.official_students import load_official_students
from mmad_fast.methods.mmrd.options import MmrdOptions
from mmad_fast.methods.mmrd.student import build_student

SHAPES = ((4, 16, 16), (8, 8, 8), (16, 4, 4))
Networks = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class SmallOptions(MmrdOptions):
    """Of a teacher with small maps."""

    @property
    def level_shapes(self) -> tuple[tuple[int, int, int], ...]:
        return SHAPES


def options_of(method: str, path: Path | str, **chosen: Any) -> MmrdOptions:
    _, variant = get_method(method)
    return SmallOptions(**{**variant.values, "student_weights": str(path), **chosen})


def trained_state(method: str) -> dict[str, Tensor]:
    """Random weights and statistics of a method's students, by our keys."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(tensor.shape, generator=generator) + 0.1
        if tensor.is_floating_point()
        else torch.tensor(7)
        for key, tensor in build_student(options_of(method, "train")).state_dict().items()
    }


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): tensor for k, tensor in state.items() if k.startswith(prefix)}


def rd_file() -> Networks:
    """As RD4AD's code saves it: with a layer that its forward does not run."""
    state = trained_state("rd")
    unused = {"conv4.weight": torch.rand(16, 8, 1, 1), "bn4.running_mean": torch.rand(16)}
    return {"bn": part(state, "bn.") | unused, "decoder": part(state, "decoder.")}


def trd_file(second: str = "student_depth") -> Networks:
    state = trained_state("trd")
    return {
        "student_rgb": part(state, "students.rgb."),
        second: part(state, "students.aux."),
    }


@pytest.mark.parametrize(
    ("method", "networks"),
    [
        ("rd", rd_file()),
        ("trd", trd_file()),
        ("trd", trd_file("student_normals")),
        # Of a network that several GPUs trained.
        ("rd", {n: {f"module.{k}": t for k, t in one.items()} for n, one in rd_file().items()}),
    ],
)
def test_students_of_a_file_are_those_that_wrote_it(
    tmp_path: Path, method: str, networks: Networks
) -> None:
    path = tmp_path / "carrot.pth"
    torch.save(networks, path)
    student, source = load_official_students(options_of(method, path))
    expected = trained_state(method)
    found = student.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert not student.training
    assert (source["kind"], source["detail"]) == ("file", "carrot.pth")
    assert len(source["sha256"]) == 64


def without(name: str, key: str) -> Callable[[Networks], Any]:
    return lambda networks: networks[name].pop(key)


def changed(name: str, key: str, tensor: Tensor) -> Callable[[Networks], Any]:
    return lambda networks: networks[name].update({key: tensor})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("decoder", "layer3.5.bn3.weight"), "'decoder.layer3.5.bn3.weight' is missing"),
        (changed("bn", "conv1.weight", torch.rand(8, 5, 3, 3)), "expected \\(8, 4, 3, 3\\)"),
        (changed("bn", "bn1.bias", torch.full((8,), torch.nan)), "'bn.bn1.bias' .*not finite"),
        (changed("bn", "conv9.weight", torch.rand(1)), "'bn.conv9.weight' \\(1,\\) is unknown"),
        (lambda networks: networks.pop("bn"), "holds the networks decoder, and rd needs"),
        (lambda networks: networks.clear(), "holds no networks"),
    ],
)
def test_a_file_of_other_networks_is_refused(
    tmp_path: Path, spoil: Callable[[Networks], Any], words: str
) -> None:
    networks = rd_file()
    spoil(networks)
    path = tmp_path / "carrot.pth"
    torch.save(networks, path)
    with pytest.raises(WeightsError, match=words):
        load_official_students(options_of("rd", path))


def test_a_file_of_another_method_or_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "carrot.pth"
    torch.save(rd_file(), path)
    with pytest.raises(WeightsError, match="networks bn, decoder, and trd needs student_rgb, stud"):
        load_official_students(options_of("trd", path))
    path.write_bytes(b"PK")
    with pytest.raises(WeightsError, match="cannot be read as a torch checkpoint"):
        load_official_students(options_of("rd", path))
    with pytest.raises(WeightsError, match="is not a file; give the path .*'train'"):
        load_official_students(options_of("rd", tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("method", "chosen", "words"),
    [
        ("mmrd", {"student_weights": "a.pth"}, "no public code trains such students"),
        ("rd", {"student_weights": "a.pth", "epochs": "3"}, "epochs .*student_weights is a file"),
    ],
)
def test_options_without_effect(method: str, chosen: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        resolve_options(FitRequest.of(method, **chosen))
