"""Complete detector artifacts of 2 MB with hand-made graphs: no torch, no training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from ops.embedding_cases import embedder_weights

from mmad_fast.artifact import Golden, write_artifact
from mmad_fast.methods.ast.options import (
    DEPTH_BLOCK,
    GRAPH,
    NOT_READ_SIZE,
    PERMUTATIONS,
    AstOptions,
)
from mmad_fast.methods.branches.point_groups.options import EMBEDDER_PREFIX
from mmad_fast.methods.btf.options import BANK, BtfOptions
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.cfm.token_features import FPFH_CHANNELS
from mmad_fast.methods.family import get_method
from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.methods.memory_bank.options import BANK_PREFIX
from mmad_fast.methods.mmrd.options import MmrdOptions
from mmad_fast.methods.options import MethodOptions
from mmad_fast.ops.fpfh import NUM_CHANNELS
from mmad_fast.ops.pixel_mapping import MappingNetwork
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS
from mmad_fast.threshold import VALIDATION, Threshold

RGB_SIZE, TOKEN_GRID, RGB_DIM = 56, 7, 8
NUM_GROUPS, GROUP_SIZE, POINT_DIM = 24, 16, 6
TINY_BRANCHES: dict[str, Any] = {
    "rgb_backbone": "dino-vitb8",
    "rgb_size": RGB_SIZE,
    "token_grid": TOKEN_GRID,
    "rgb_layers": 1,
    "point_layers": (0,),
    "grid_size": 56,
    "num_groups": NUM_GROUPS,
    "group_size": GROUP_SIZE,
}
TINY_PARAMETERS = CfmOptions(**TINY_BRANCHES)
BANK_ROWS = 64
TINY_BANKS = M3dmOptions(**TINY_BRANCHES, point_patches="28x28", decision="sum", uses_uff=False)


def make_arrays(seed: int = 0, size: int = 96) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A scan of a bumpy disc on a plane: rgb (size, size, 3) uint8, xyz float32 metres."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:size, :size].astype(np.float64) + 0.5
    radius = np.hypot(u - size / 2, v - size / 2) / size
    z = np.full((size, size), 0.5)
    disc = radius < 0.3
    z[disc] -= 0.02 + 0.004 * np.cos(12 * radius[disc])
    focal = 2.5 * size
    xyz = np.stack([(u - size / 2) * z / focal, (v - size / 2) * z / focal, z], axis=-1)
    xyz[..., 2] += rng.normal(0, 1e-4, z.shape)
    rgb = np.where(disc[..., None], (170, 120, 60), (90, 90, 95)) + rng.integers(
        -9, 9, (size, size, 3)
    )
    return rgb.astype(np.uint8), xyz.astype(np.float32)


def write_tiny_cfm(path: Path, options: CfmOptions = TINY_PARAMETERS) -> Path:
    """A CFM artifact in a folder that is not there yet."""
    rng = np.random.default_rng(0)
    graphs = _graphs(rng, options)
    tensors = {
        **_mapping("rgb_to_point", RGB_DIM, POINT_DIM, rng),
        **_mapping("point_to_rgb", POINT_DIM, RGB_DIM, rng),
        **_embedder(),
    }
    return _write(path, "cfm-t", options, graphs, tensors)


def write_tiny_cfm_tokens(path: Path, geometry: Literal["normals", "fpfh"]) -> Path:
    """An artifact of a CFM variant without Point-MAE, in a folder that is not there yet."""
    rng = np.random.default_rng(0)
    width = {"normals": RGB_DIM, "fpfh": FPFH_CHANNELS}[geometry]
    tensors = {
        **_mapping("rgb_to_point", RGB_DIM, width, rng),
        **_mapping("point_to_rgb", width, RGB_DIM, rng),
    }
    options = replace(TINY_PARAMETERS, geometry=geometry, fpfh_neighbors=20)
    return _write(path, f"cfm-{geometry}", options, {"rgb": _rgb_graph(rng)}, tensors)


def write_tiny_m3dm(path: Path, options: M3dmOptions = TINY_BANKS) -> Path:
    """An M3DM artifact with banks of random rows, in a folder that is not there yet."""
    rng = np.random.default_rng(0)
    graphs = _graphs(rng, options)
    widths = {"point": POINT_DIM, "rgb": RGB_DIM, "fusion": POINT_DIM + RGB_DIM}
    banks = {
        BANK_PREFIX + bank: rng.normal(0, 1, (BANK_ROWS, widths[bank])).astype(np.float32)
        for bank in options.banks
    }
    return _write(path, "m3dm", options, graphs, {**banks, **_embedder()})


def write_small_artifacts(folder: Path) -> dict[str, Path]:
    """Artifacts of all families by name, the example family included, which this process then has:
    as few groups as are needed, so that a scan takes few milliseconds. Those that are there are
    taken."""
    add_example_family()
    few = {"num_groups": 8, "group_size": 8}
    writers = {
        "cfm": lambda path: write_tiny_cfm(path, replace(TINY_PARAMETERS, **few)),
        "m3dm": lambda path: write_tiny_m3dm(path, replace(TINY_BANKS, **few)),
        "cfm-fpfh": lambda path: write_tiny_cfm_tokens(path, "fpfh"),
        "btf": write_tiny_btf,
        "ast": write_tiny_ast,
        "mmrd": write_tiny_mmrd,
        "patch_color": write_tiny_patch_color,
    }
    paths = {name: folder / name for name in writers}
    for name, write in writers.items():
        if not paths[name].is_dir():
            write(paths[name])
    return paths


def write_tiny_btf(path: Path) -> Path:
    """A BTF artifact of histograms alone, which has no graph, in a folder that is not there yet."""
    options = BtfOptions(grid_size=56, features=("fpfh",), fpfh_neighbors=30)
    bank = np.random.default_rng(0).uniform(0, 60, (BANK_ROWS, NUM_CHANNELS)).astype(np.float32)
    return _write(path, "btf-fpfh", options, {}, {BANK_PREFIX + BANK: bank})


def write_tiny_ast(path: Path) -> Path:
    """An AST artifact that reads the depth alone, in a folder that is not there yet: its graph has
    the mean of the squares of a place's depth pixels for the networks."""
    side, channels = 7, DEPTH_BLOCK**2
    options = AstOptions(
        rgb_size=NOT_READ_SIZE, grid_size=side * DEPTH_BLOCK, reads_rgb=False, student_channels=8
    )
    nodes = [
        helper.make_node("Mul", ["features", "features"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axes"], ["difference"], keepdims=0),
    ]
    shapes = {"features": (1, channels, side, side)}, {"difference": (1, side, side)}
    graph = _model(nodes, *shapes, {"axes": np.array([1])})
    order = np.tile(np.arange(channels), (4, 1))
    return _write(path, "ast-depth", options, {GRAPH: graph}, {PERMUTATIONS: order})


TINY_DISTILLATION = MmrdOptions(
    rgb_size=64, grid_size=64, rgb_levels=(1, 2, 3), adapts="none", student_width=0.125
)


def write_tiny_mmrd(path: Path, options: MmrdOptions = TINY_DISTILLATION) -> Path:
    """An MMRD artifact of RGB and depth, in a folder that is not there yet. Its teacher has means
    of patches for maps; its student wants the sum of both modalities and restores RGB alone."""
    rng = np.random.default_rng(0)
    teacher, constants, student = [], {}, []
    for level, (channels, side, _) in enumerate(options.level_shapes, start=1):
        patch = [options.rgb_size // side] * 2
        teacher += [
            helper.make_node(
                "AveragePool", ["image"], [f"mean_{level}"], kernel_shape=patch, strides=patch
            ),
            helper.make_node("Conv", [f"mean_{level}", f"weight_{level}"], [f"map_{level}"]),
            helper.make_node("Relu", [f"map_{level}"], [f"level_{level}"]),
        ]
        constants[f"weight_{level}"] = rng.normal(0, 1, (channels, 3, 1, 1)).astype(np.float32)
        student += [
            helper.make_node("Identity", [f"rgb_{level}"], [f"restored_{level}"]),
            helper.make_node("Add", [f"rgb_{level}", f"aux_{level}"], [f"target_{level}"]),
        ]
    levels = {
        f"level_{level}": (1, *shape) for level, shape in enumerate(options.level_shapes, start=1)
    }
    image = {"image": (1, 3, options.rgb_size, options.rgb_size)}
    graphs = {
        "rgb": _model(teacher, image, levels, constants),
        "student": _model(student, options.student_inputs, options.student_outputs, {}),
    }
    return _write(path, "mmrd", options, graphs, {})


def write_tiny_patch_color(path: Path) -> Path:
    """An artifact of the example family, in a folder that is not there yet."""
    from mmad_fast.methods.patch_color.fit import _write_graph
    from mmad_fast.methods.patch_color.options import PatchColorOptions

    rng = np.random.default_rng(0)
    options = PatchColorOptions(rgb_size=64, grid_size=64)
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = _write_graph(options, path.parent / "patch_means.onnx")
    nominal = rng.normal(0, 1, (3, 4, 4)).astype(np.float32)
    tensors = {"nominal": nominal, "spread": np.full_like(nominal, 0.1)}
    return _write(path, "patch-color", options, {"patch_means": onnx.load(graph)}, tensors)


def add_example_family() -> None:
    """Makes tests/methods/patch_color a family of this process."""
    import mmad_fast.methods
    from mmad_fast.methods import family

    if "patch_color" not in family.FAMILIES:
        mmad_fast.methods.__path__.append(str(Path(__file__).parent / "methods"))
        family.FAMILIES = (*family.FAMILIES, "patch_color")


def _write(
    path: Path,
    method: str,
    options: MethodOptions,
    graphs: dict[str, onnx.ModelProto],
    tensors: dict[str, NDArray],
) -> Path:
    """The artifact, with the answer to its golden scan."""
    from mmad_fast.detector import load

    path.parent.mkdir(parents=True, exist_ok=True)
    rgb, xyz = make_arrays()
    family = get_method(method)[0]
    recipe = options.prepared_by(family.recipe)
    normals = rgb[::-1] if recipe.reads_normals else None
    arguments: dict[str, Any] = {
        "method": method,
        "family": family.name,
        "preprocess": recipe.to_dict(),
        "parameters": options.to_manifest(),
        "weights": {b.key: {"kind": "random"} for b in family.weighted_branches},
        "graphs": {
            name: _save(model, path.parent / f"{name}.onnx") for name, model in graphs.items()
        },
        "tensors": tensors,
    }
    blank = Golden(rgb, xyz, np.zeros((options.grid_size,) * 2, np.float32), 0.0)
    draft = write_artifact(
        path.parent / f"{path.name}_draft", threshold=None, golden=blank, **arguments
    )
    result = load(draft).infer(rgb, xyz, normals=normals)
    golden = Golden(rgb, xyz, result.anomaly_map, result.image_score, normals)
    threshold = Threshold(result.image_score * 1.5, 0.99, 1, VALIDATION)
    return write_artifact(path, threshold=threshold, golden=golden, **arguments)


def _graphs(
    rng: np.random.Generator, options: CfmOptions | M3dmOptions
) -> dict[str, onnx.ModelProto]:
    return {"rgb": _rgb_graph(rng), "points": _point_graph(rng, options.num_groups)}


def _embedder() -> dict[str, NDArray]:
    return embedder_weights(uses_cloud_statistics=True).to_tensors(EMBEDDER_PREFIX)


def _mapping(name: str, dim_in: int, dim_out: int, rng: np.random.Generator) -> dict[str, NDArray]:
    hidden = (dim_in + dim_out) // 2
    sizes = {"input": (hidden, dim_in), "projection": (hidden, hidden), "output": (dim_out, hidden)}
    tensors = {}
    for layer, shape in sizes.items():
        tensors[f"{name}.{layer}.weight"] = rng.normal(0, 0.5, shape).astype(np.float32)
        tensors[f"{name}.{layer}.bias"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
    network = MappingNetwork.from_tensors(tensors, f"{name}.")
    return {**tensors, **network.rotated_tensors(f"{name}.")}


def _rgb_graph(rng: np.random.Generator) -> onnx.ModelProto:
    """image (1, 3, 56, 56) -> tokens (1, 49, 8): one patch embedding."""
    patch = RGB_SIZE // TOKEN_GRID
    weight = rng.normal(0, 0.1, (RGB_DIM, 3, patch, patch)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["grid"], strides=[patch, patch]),
        helper.make_node("Reshape", ["grid", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
    ]
    constants = {"weight": weight, "shape": np.array([1, RGB_DIM, TOKEN_GRID**2], np.int64)}
    return _model(
        nodes,
        {"image": (1, 3, RGB_SIZE, RGB_SIZE)},
        {"tokens": (1, TOKEN_GRID**2, RGB_DIM)},
        constants,
    )


def _point_graph(rng: np.random.Generator, num_groups: int) -> onnx.ModelProto:
    """tokens (1, G, 384), centers (1, G, 3) -> features (1, G, 6): two linear maps."""
    nodes = [
        helper.make_node("MatMul", ["tokens", "local"], ["mixed"]),
        helper.make_node("MatMul", ["centers", "position"], ["placed"]),
        helper.make_node("Add", ["mixed", "placed"], ["features"]),
    ]
    constants = {
        "local": rng.normal(0, 0.05, (TOKEN_CHANNELS, POINT_DIM)).astype(np.float32),
        "position": rng.normal(0, 5, (3, POINT_DIM)).astype(np.float32),
    }
    inputs = {"tokens": (1, num_groups, TOKEN_CHANNELS), "centers": (1, num_groups, 3)}
    return _model(nodes, inputs, {"features": (1, num_groups, POINT_DIM)}, constants)


def _model(nodes: list, inputs: dict, outputs: dict, constants: dict) -> onnx.ModelProto:
    def values(shapes: dict) -> list:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]

    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
