"""Graphs for engines: the fitted graph's result, names and types, for every target."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from export.conftest import feed_of, run_graph  # noqa: E402

from mmad_fast.errors import ArtifactError, InvalidInputError, MmadFastError  # noqa: E402
from mmad_fast.export.batch import Batch  # noqa: E402
from mmad_fast.export.deployment_graph import (  # noqa: E402
    PRECISIONS,
    TARGETS,
    deployment_graph,
)
from mmad_fast.export.engine_layers import summarize  # noqa: E402
from mmad_fast.export.tensorrt_engine import build_engine  # noqa: E402

BACKBONES = ("dino", "dinov2", "points")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_fp32_gives_what_the_source_gives(
    small_graphs: dict[str, Path], backbone: str, target: str
) -> None:
    source = small_graphs[backbone]
    feed = feed_of(source)
    expected = run_graph(source, feed)
    result = run_graph(deployment_graph(source, target=target), feed)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("target", ["openvino", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_half_precision_in_openvino(
    small_graphs: dict[str, Path], tmp_path: Path, backbone: str, precision: str, target: str
) -> None:
    """OpenVINO computes the half-precision graphs in float32: what is left is the weights'
    rounding."""
    openvino = pytest.importorskip("openvino")
    source = small_graphs[backbone]
    feed = feed_of(source, batch=2)
    model = deployment_graph(source, target=target, precision=precision, batch=Batch(1, 2, 4))
    onnx.save(model, tmp_path / "graph.onnx")
    compiled = openvino.Core().compile_model(
        tmp_path / "graph.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    result = compiled(feed)[0]
    assert result.dtype == np.float32
    expected = np.concatenate(
        [
            run_graph(source, {name: array[i : i + 1] for name, array in feed.items()})
            for i in (0, 1)
        ]
    )
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert 1e-6 < error < {"fp16": 2e-3, "bf16": 2e-2}[precision]


@pytest.mark.parametrize("target", TARGETS)
def test_names_types_and_shapes_stay(small_graphs: dict[str, Path], target: str) -> None:
    source = small_graphs["points"]
    expected = onnx.load(source).graph
    for precision in ("fp32", "fp16", "bf16"):
        graph = deployment_graph(source, target=target, precision=precision).graph
        assert list(graph.input) == list(expected.input)
        assert list(graph.output) == list(expected.output)


def test_attention_is_the_targets(small_graphs: dict[str, Path]) -> None:
    def ops(target: str) -> set[str]:
        graph = deployment_graph(small_graphs["dino"], target=target, precision="fp16").graph
        return {node.op_type for node in graph.node} & {"Attention", "Softmax"}

    assert [ops(target) for target in TARGETS] == [{"Attention"}] * 2 + [{"Softmax"}] * 2


@pytest.mark.parametrize(("precision", "bound"), [("int8", 0.03), ("fp8", 0.06)])
@pytest.mark.parametrize("backbone", ["dino", "dinov2"])
def test_8_bit_graphs_for_tensorrt_run_in_onnx_runtime(
    small_graphs: dict[str, Path], backbone: str, precision: str, bound: float
) -> None:
    """Their accuracy is measured there."""
    source = small_graphs[backbone]
    feed = feed_of(source)
    model = deployment_graph(source, target="tensorrt", precision=precision, calibration=[feed])
    expected, result = run_graph(source, feed), run_graph(model, feed)
    assert 1e-4 < np.linalg.norm(result - expected) / np.linalg.norm(expected) < bound


def test_graphs_for_tensorrt_have_the_oldest_opset_that_holds_them(
    small_graphs: dict[str, Path],
) -> None:
    """JetPack 6 has TensorRT 10.3, whose parser was written for opset 20."""
    source = small_graphs["dino"]
    opsets = {}
    for precision in PRECISIONS:
        model = deployment_graph(
            source, target="tensorrt", precision=precision, calibration=[feed_of(source)]
        )
        opsets[precision] = model.opset_import[0].version
        assert model.ir_version <= 10
    assert opsets == {"fp32": 18, "fp16": 18, "bf16": 22, "int8": 19, "fp8": 21}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tensorrt_needs_eight_kernels_per_block(
    small_graphs: dict[str, Path], tmp_path: Path, backbone: str
) -> None:
    """The qkv product, its shuffle, attention, projection, norm, both halves of the MLP, norm."""
    pytest.importorskip("tensorrt_rtx")
    model = deployment_graph(small_graphs[backbone], target="tensorrt-rtx", precision="fp16")
    engine = build_engine(
        model, tmp_path / "x.engine", target="tensorrt-rtx", precision="fp16", sms=[89]
    )
    summary = summarize(engine.layers)
    assert (summary.fused_attention, summary.separate_softmax) == (2, 0)
    around = {"dino": 3, "dinov2": 3, "points": 6}[backbone]  # patches; positions, more norms
    assert summary.kernels <= 2 * 8 + around
    makers = {node.output[0]: node for node in model.graph.node}
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    products = [node for node in model.graph.node if node.input[0] in softmaxes[0].output]
    products += [makers[softmaxes[0].input[0]]]
    inside = {softmaxes[0].name, *(node.name for node in products)}
    assert any(inside <= set(layer.onnx_nodes) for layer in engine.layers if "mha" in layer.name)


def test_the_source_is_left_alone(small_graphs: dict[str, Path]) -> None:
    before = small_graphs["dino"].read_bytes()
    deployment_graph(small_graphs["dino"], target="onnx", precision="fp16")
    assert small_graphs["dino"].read_bytes() == before


def test_unknown_names_are_refused(small_graphs: dict[str, Path]) -> None:
    source = small_graphs["dino"]
    with pytest.raises(InvalidInputError, match="target is 'trt'; it must be one of onnx, openvi"):
        deployment_graph(source, target="trt")
    with pytest.raises(InvalidInputError, match="precision is 'int4'; it must be one of fp32, fp"):
        deployment_graph(source, target="onnx", precision="int4")


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name in ("int8", "fp8")])
def test_quantised_precisions_need_scans(small_graphs: dict[str, Path], precision: str) -> None:
    with pytest.raises(InvalidInputError, match="needs the inputs of some scans .* there are none"):
        deployment_graph(small_graphs["dino"], target="onnx", precision=precision)


def test_a_quantised_source_is_refused(small_graphs: dict[str, Path], tmp_path: Path) -> None:
    from mmad_fast.export.quantization import quantize_graph

    path = tmp_path / "rgb.onnx"
    path.write_bytes(small_graphs["dino"].read_bytes())
    quantize_graph(path)
    with pytest.raises(InvalidInputError, match="rgb.onnx is quantised already; .* precision='fp3"):
        deployment_graph(path, target="onnx")


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rgb.onnx").write_bytes(b"garbage")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("rgb.onnx", "empty.onnx", "missing.onnx"):
        with pytest.raises(ArtifactError, match=f"{name}: cannot be loaded as a detector's"):
            deployment_graph(tmp_path / name, target="onnx")


def test_no_torch_is_needed(small_graphs: dict[str, Path]) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from mmad_fast.export.batch import Batch\n"
        "from mmad_fast.export.deployment_graph import deployment_graph\n"
        "from mmad_fast.export.graph_cost import graph_cost\n"
        f"source = Path({str(small_graphs['dino'])!r})\n"
        "batch = Batch(1, 2, 4)\n"
        "model = deployment_graph(source, target='tensorrt-rtx', precision='bf16', batch=batch)\n"
        "print(graph_cost(model).parameters)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_onnx_missing_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MmadFastError, match=r"onnx, which is not installed; .*mmad-fast\[export\]"):
        deployment_graph(tmp_path / "rgb.onnx", target="onnx")
