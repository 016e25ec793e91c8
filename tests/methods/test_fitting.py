"""The front door of fitting: what it refuses before any work, and what it hands to the family."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import mmad_fast
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods import fitting
from mmad_fast.methods.fitting import FitRequest

RAW_FILES = ("image_4.png", "depth.png", "info_depth.yaml", "pose.txt")

BAD_OPTIONS = [
    *(("method", value, "there is no method .*; known are cfm") for value in (None, ["a"], "x")),
    *(("threshold_quantile", value, "from 0 to 1") for value in ("a", math.nan, -0.1, 1.1, None)),
    *(("rgb_layers", value, "integer|at least 1") for value in ("4", 0, 1.5, True)),
    *(("epochs", value, "integer|at least 1") for value in (0, -3, "all")),
    *(("group_size", value, "integer|at least 1") for value in (0, [32])),
    *(("num_groups", value, r"integer|in 1\.\.4096") for value in (0, 4097, "1024")),
    *(("shots", value, "integer|at least 1") for value in (0, 2.5, "5")),
    *(("options", value, "values by option name") for value in (["blur"], {3: 4}, "blur=float")),
    *(("seed", value, r"integer|in 0\.\.") for value in (-1, None, 2**32)),
    *(
        ("point_layers", value, "block numbers|integer|at least 0")
        for value in (3, (), ("1",), (-1,))
    ),
    *(("rgb_weights", value, "'auto', 'random' or a") for value in (None, 3)),
    *(("recipe", value, "recipe") for value in (["cfm"], "bake")),
    ("point_weights", b"auto", "'auto', 'random' or a"),
    ("rgb_backbone", 5, "a name or None"),
    ("mapping", ["crossmodal"], "a name or None"),
    ("unit", ["m"], "'m' or 'mm'"),
]


@pytest.mark.parametrize(("option", "value", "words"), BAD_OPTIONS)
def test_a_bad_option_is_named_before_any_work(tmp_path: Path, option, value, words) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        mmad_fast.fit(tmp_path / "no data", tmp_path / "new" / "artifact", **{option: value})
    assert option in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [None, 3])
def test_data_and_output_must_be_paths(tmp_path: Path, value) -> None:
    pytest.importorskip("torch", reason="fitting needs torch")
    with pytest.raises(InvalidInputError, match="data is .*path of a data set"):
        mmad_fast.fit(value, tmp_path / "artifact")
    with pytest.raises(InvalidInputError, match="artifact's path is"):
        mmad_fast.fit(tmp_path, value)


def test_numpy_numbers_and_paths_are_taken() -> None:
    request = FitRequest(
        rgb_layers=np.int64(4), threshold_quantile=np.float32(0.5), rgb_weights=Path("x.pth")
    )
    assert json.dumps([request.rgb_layers, request.threshold_quantile]) == "[4, 0.5]"


class Captured(Exception):
    """Ends a fit at the family's door."""


@pytest.mark.parametrize(("given", "expected"), [(None, "none"), ("cfm", "cfm")])
def test_raw_eyecandies_is_fitted_without_background_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    fit_module = pytest.importorskip("mmad_fast.methods.cfm.fit", reason="fitting needs torch")
    folder = tmp_path / "Confetto" / "train" / "data"
    folder.mkdir(parents=True)
    for name in RAW_FILES:
        (folder / f"000_{name}").touch()

    def capture(train, validation, output, request, *, progress):
        raise Captured(request.recipe)

    monkeypatch.setattr(fit_module, "fit_cfm", capture)
    with pytest.raises(Captured) as caught:
        fitting.fit(tmp_path, tmp_path / "artifact", recipe=given)
    assert caught.value.args == (expected,)
