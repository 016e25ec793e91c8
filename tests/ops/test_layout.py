"""Each op has the same name in all four trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmad_fast import _kernels, validation
from mmad_fast.ops import STEMS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stem", STEMS)
def test_an_op_is_in_all_trees(stem: str) -> None:
    wanted = [
        f"csrc/{stem}/op.h",
        f"csrc/{stem}/cpu.cpp",
        f"mmad_fast/ops/{stem}/__init__.py",
        f"mmad_fast/ops/{stem}/reference.py",
        f"mmad_fast/ops/{stem}/backends.py",
        f"mmad_fast/ops/{stem}/README.md",
        f"tests/ops/test_{stem}.py",
        f"bench/ops/bench_{stem}.py",
    ]
    assert [path for path in wanted if not (ROOT / path).is_file()] == []


def test_every_package_under_ops_is_listed() -> None:
    packages = {path.parent.name for path in ROOT.glob("mmad_fast/ops/*/__init__.py")}
    assert packages == set(STEMS)


@pytest.mark.parametrize("stem", STEMS)
def test_the_reference_imports_nothing_fast(stem: str) -> None:
    source = (ROOT / "mmad_fast" / "ops" / stem / "reference.py").read_text(encoding="utf-8")
    for word in ("_kernels", "backends", "onnxruntime", "torch"):
        assert f"import {word}" not in source
        assert f".{word}" not in source


def test_the_kernels_have_the_limits_that_are_named_in_refusals() -> None:
    limits = (_kernels.MAX_SIDE, _kernels.MAX_CENTERS)
    assert limits == (validation.MAX_SIDE, validation.MAX_CENTERS)
