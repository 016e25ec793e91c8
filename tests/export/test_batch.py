"""Batches of graphs: what their sizes may be, and that each input gets what it gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmad_fast.errors import InvalidInputError
from mmad_fast.export.batch import Batch, set_batch

onnx = pytest.importorskip("onnx")

from export.conftest import feed_of, run_graph  # noqa: E402

BACKBONES = ("dino", "dinov2", "points")


def test_parsing() -> None:
    assert Batch.parse("4") == Batch(4, 4, 4)
    assert Batch.parse(" 1, 4 ,8") == Batch(1, 4, 8)
    assert not Batch.parse("4").is_dynamic
    assert Batch.parse("1,1,2").is_dynamic


@pytest.mark.parametrize("text", ["", "x", "1,2", "1,2,3,4", "1.5", "1,,2"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="one size .* or three"):
        Batch.parse(text)


@pytest.mark.parametrize(
    "sizes", [(0, 1, 1), (2, 1, 3), (1, 3, 2), (1, 1, 1025), (1.0, 1, 1), (True, True, True)]
)
def test_other_sizes_are_refused(sizes: tuple) -> None:
    with pytest.raises(InvalidInputError, match="1 <= min <= opt <= max <= 1024 are needed"):
        Batch(*sizes)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    ("batch", "sizes"),
    [(Batch(3, 3, 3), (3,)), (Batch(1, 2, 4), (1, 2, 3))],
    ids=["static", "open"],
)
def test_a_batch_gives_what_single_runs_give(
    small_graphs: dict[str, Path], backbone: str, batch: Batch, sizes: tuple[int, ...]
) -> None:
    source = small_graphs[backbone]
    feed = feed_of(source, batch=3)
    expected = np.concatenate(
        [
            run_graph(source, {name: array[i : i + 1] for name, array in feed.items()})
            for i in range(3)
        ]
    )
    model = onnx.load(source)
    set_batch(model, batch)
    onnx.checker.check_model(model, full_check=True)
    for size in sizes:
        result = run_graph(model, {name: array[:size] for name, array in feed.items()})
        np.testing.assert_allclose(
            result, expected[:size], rtol=0, atol=1e-6 * np.abs(expected).max()
        )


def test_only_the_batch_axis_is_open(small_graphs: dict[str, Path]) -> None:
    model = onnx.load(small_graphs["points"])
    set_batch(model, Batch(1, 2, 4))
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", 20, 384], ["batch", 20, 3], ["batch", 20, 768]]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert not any(node.op_type in ("Shape", "Expand") for node in inferred.graph.node)


def test_a_batch_of_one_changes_nothing(small_graphs: dict[str, Path]) -> None:
    model = onnx.load(small_graphs["dino"])
    before = model.SerializeToString()
    set_batch(model, Batch())
    assert model.SerializeToString() == before


def test_a_batched_graph_is_refused(small_graphs: dict[str, Path]) -> None:
    model = onnx.load(small_graphs["dino"])
    set_batch(model, Batch(1, 2, 4))
    with pytest.raises(InvalidInputError, match="'image' of the graph has batch batch; a graph of"):
        set_batch(model, Batch(2, 2, 2))


def test_another_graph_is_refused(small_graphs: dict[str, Path]) -> None:
    model = onnx.load(small_graphs["dino"])
    joined = next(node for node in model.graph.node if node.op_type == "Concat")
    joined.input.append(joined.input[1])
    with pytest.raises(InvalidInputError, match="joins more than class token .* batch of 1"):
        set_batch(model, Batch(2, 2, 2))
    model = onnx.load(small_graphs["points"])
    reshape = next(node for node in model.graph.node if node.op_type == "Reshape")
    reshape.input[1] = "tokens"
    with pytest.raises(InvalidInputError, match="the shape 'tokens' is not constant"):
        set_batch(model, Batch(2, 2, 2))
    model = onnx.load(small_graphs["points"])
    reshape = next(node for node in model.graph.node if node.op_type == "Reshape")
    constant = next(t for t in model.graph.initializer if t.name == reshape.input[1])
    constant.CopyFrom(onnx.numpy_helper.from_array(np.array([20, 1, 3, 6, -1]), constant.name))
    with pytest.raises(InvalidInputError, match=r"has shape \[20, 1, 3, 6, -1\], not batch 1"):
        set_batch(model, Batch(2, 2, 2))
