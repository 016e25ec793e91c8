"""Engine layers as records, from the text of real builds and from an inspector's JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from mmad_fast.errors import InvalidInputError
from mmad_fast.export.engine_layers import (
    EngineLayer,
    EngineTensor,
    LayerSummary,
    parse_layers,
    summarize,
)

# What TensorRT-RTX 1.7.1 logged when it built attention_graphs.transformer(blocks=1) for sm_89.
TEXTS = {
    precision: (Path(__file__).parent / f"engine_layers_{precision}.txt").read_text("utf-8")
    for precision in ("fp16", "fp32")
}
LINEAR = "(Linear) Row major linear format"


def test_a_line_of_a_real_build_is_read_completely() -> None:
    layers = parse_layers(TEXTS["fp16"])
    assert len(layers) == 9
    assert layers[6] == EngineLayer(
        name="__myl_FcAddDivCastErfCastAddMulMul_myl0_6",
        kind="runtime_fusion",
        inputs=(EngineTensor("__myln_k_arg__bb1_10_myl0", (1, 49, 64), "Half", LINEAR),),
        outputs=(EngineTensor("MatMul_25.1_11_myl0", (1, 49, 256), "Half", LINEAR),),
        onnx_nodes=("Mul_24", "Mul_23", "Add_22", "Div_20", "Erf_21", "Add_19", "MatMul_18"),
        tactic="",
    )
    attention = layers[3]
    assert attention.name == "_gemm_mha_v2_myl0_3"
    assert [tensor.shape for tensor in attention.inputs] == [(2, 49, 32), (2, 32, 49), (2, 49, 32)]
    assert attention.inputs[0].format == "(Arbitrary) Format with stride order = [1,2,0]"
    assert attention.onnx_nodes == ("MatMul_11", "Softmax_10", "MatMul_9")
    assert attention.tactic.startswith("_gemm_mha_v2_0x")
    assert layers[0].inputs[0] == EngineTensor("tokens", (1, 49, 64), "Float", LINEAR)
    assert layers[-1].outputs[0] == EngineTensor("features", (1, 49, 64), "Float", LINEAR)


def test_the_summary_of_a_real_half_precision_build() -> None:
    assert summarize(parse_layers(TEXTS["fp16"])) == LayerSummary(
        num_layers=9,
        kernels=9,
        fused_attention=1,
        separate_softmax=0,
        gemms=4,
        fused_norms=3,
        reformats=0,
        kernels_per_block=9.0,
    )


def test_the_summary_of_a_real_float32_build_has_no_fused_attention() -> None:
    summary = summarize(parse_layers(TEXTS["fp32"]))
    assert summary.fused_attention == 0
    assert summary.separate_softmax == 1
    assert summary.gemms == 4 + 2  # those of the attention are kernels of their own
    assert summary.reformats == 6
    assert summary.kernels_per_block == summary.kernels == 16


def test_a_layer_survives_json() -> None:
    for layer in parse_layers(TEXTS["fp16"]):
        assert EngineLayer.from_dict(json.loads(json.dumps(asdict(layer)))) == layer


def inspector_json(layers: list[object]) -> str:
    return json.dumps({"Layers": layers, "Bindings": ["tokens", "features"]})


def test_the_inspector_of_tensorrt_11_gives_the_same_records() -> None:
    """Its owner documents the keys; this text is made from the same build, not captured."""
    expected = parse_layers(TEXTS["fp16"])
    layers = [
        {
            "Name": layer.name,
            "LayerType": layer.kind,
            **{
                key: [
                    {
                        "Name": tensor.name,
                        "Dimensions": list(tensor.shape),
                        "Datatype": tensor.dtype,
                        "Format": tensor.format,
                    }
                    for tensor in tensors
                ]
                for key, tensors in (("Inputs", layer.inputs), ("Outputs", layer.outputs))
            },
            "TacticName": layer.tactic,
            "StreamId": 0,
            "Metadata": "\u001e".join(f"[ONNX Layer: {node}]" for node in layer.onnx_nodes),
        }
        for layer in expected
    ]
    assert parse_layers(inspector_json(layers)) == expected


def test_until_tensorrt_10_type_and_format_are_one_phrase() -> None:
    tensor = {"Name": "x", "Dimensions": [1, 8], "Format/Datatype": "Row major linear FP16 format"}
    layer = {"Name": "a + b", "LayerType": "CaskGemm", "Inputs": [tensor], "Outputs": [tensor]}
    text = (
        "Name: a + b, LayerType: CaskGemm, Inputs: [ { Name: x, Location: Device, Dimensions: "
        "[1,8], Format/Datatype: Row major linear FP16 format }], Outputs: [ { Name: x, Location: "
        "Device, Dimensions: [1,8], Format/Datatype: Row major linear FP16 format }]"
    )
    (from_json,), (from_text,) = parse_layers(inspector_json([layer])), parse_layers(text)
    assert from_json == from_text
    assert from_json.inputs[0].dtype == "Row major linear FP16 format"
    assert summarize([from_json]).gemms == 1


def test_an_engine_built_with_names_only_has_layers_without_facts() -> None:
    (layer,) = parse_layers(inspector_json(["_gemm_mha_v2_myl0_5"]))
    assert layer == EngineLayer("_gemm_mha_v2_myl0_5", "", (), (), (), "")
    assert summarize([layer]).fused_attention == 1


@pytest.mark.parametrize(
    ("name", "kind", "counted"),
    [
        ("__myl_ReshTranSlic_myl0_3", "kgen", "reformats"),
        ("__myl_Cast_myl0_0", "kgen", "reformats"),
        ("Reformatting CopyNode for Input Tensor 0", "Reformat", "reformats"),
        (
            "Reformatting CopyNode for Input Tensor 0 to _gemm_mha_v2_myl0_3",
            "Reformat",
            "reformats",
        ),
        ("Reformatting CopyNode for Output Tensor 0 to MatMul_5", "Reformat", "reformats"),
        ("_gemm_mha_v2_myl0_3", "kgen", "fused_attention"),
        ("fmha_v2_flash_attention_fp16_64_64_sm80", "kgen", "fused_attention"),
        ("alphamhat_3", "kgen", "kernels"),
        ("__myl_MaxrSubExpSumDivMul_myl0_9", "kgen", "separate_softmax"),
        ("softmax_1", "SoftMax", "separate_softmax"),
        ("__myl_FcAdd_myl0_2", "runtime_fusion", "gemms"),
        ("__fc15940_myl0_3", "gemm", "gemms"),
        ("linear", "MatrixMultiply", "gemms"),
        ("__myl_MeanSubMulMeanAddSqrtDivMulMulAdd_myl0_0", "kgen", "fused_norms"),
        ("anything", "kgen", "kernels"),
    ],
)
def test_what_a_kernel_counts_as(name: str, kind: str, counted: str) -> None:
    summary = asdict(summarize([EngineLayer(name, kind, (), (), (), "")]))
    for key in ("reformats", "separate_softmax", "gemms", "fused_norms", "fused_attention"):
        assert summary[key] == (key == counted), key
    assert summary["kernels"] == 1


@pytest.mark.parametrize("kind", ["shape_call", "signal", "wait"])
def test_what_runs_on_the_host_is_no_kernel(kind: str) -> None:
    summary = summarize([EngineLayer("__mye5399_0_myl0_0", kind, (), (), (), "")])
    assert (summary.num_layers, summary.kernels, summary.kernels_per_block) == (1, 0, 0.0)


@pytest.mark.parametrize("text", ["", "no layers", "Layers:\n", '{"Layers": []}', "{}", "{"])
def test_a_text_without_layers_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="layers"):
        parse_layers(text)


def test_something_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="they must be a text"):
        parse_layers(None)  # type: ignore[arg-type]
