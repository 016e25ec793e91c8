"""The dense M3DM reference, step by step, against definitions written out."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from mmad_fast.errors import ArtifactError
from mmad_fast.methods.branches.point_groups import network as point_groups_network
from mmad_fast.methods.branches.point_groups import reference as point_groups_reference
from mmad_fast.methods.branches.vit_tokens import network as vit_tokens_network
from mmad_fast.methods.m3dm import reference, reference_banks
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock, export_uff_graphs
from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.methods.m3dm.reference import DensePatches, ReferenceOptions
from mmad_fast.methods.memory_bank import reference as memory_bank
from mmad_fast.methods.memory_bank.reference import BankScores

REFERENCES = (
    *(reference, reference_banks, memory_bank, point_groups_reference),
    *(point_groups_network, vit_tokens_network),
)


@pytest.mark.parametrize("module", REFERENCES)
def test_references_import_nothing_of_the_fast_code(module: ModuleType):
    """Records, errors, official weights and the networks' layers are all that they share."""
    shared = {
        *("artifact", "backbones", "backbones.dino", "backbones.point_mae", "errors"),
        *(
            "backbones.group_embedder",
            "methods.family",
            "methods.fit_request",
            "scan",
            "stage_clock",
        ),
        *(f"methods.branches.point_groups.{part}" for part in ("network", "options", "reference")),
        *(f"methods.branches.vit_tokens.{part}" for part in ("network", "options")),
        *(f"methods.memory_bank.{part}" for part in ("options", "reference")),
        *("methods.m3dm.networks", "methods.m3dm.options", "methods.m3dm.reference"),
    }
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            # Of "from a package import a module" the module counts.
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            is_part = {name.removeprefix("mmad_fast.") for name in whole} <= shared
            imported |= whole if is_part else {node.module}
    own = {name.removeprefix("mmad_fast.") for name in imported if name.startswith("mmad_fast")}
    assert own <= shared


def parameters_of(*banks: str, **switches: Any) -> M3dmOptions:
    """Of a detector with these banks, by default all three."""
    return M3dmOptions(
        rgb_backbone="dinov2-vits14",
        rgb_size=392,
        token_grid=28,
        rgb_layers=1,
        point_layers=(0,),
        banks=banks or ("point", "rgb", "fusion"),
        decision="single" if len(banks) == 1 else "svm",
        uses_uff=False,
        **switches,
    )


def random_rows(num_rows: int, num_channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, num_channels, generator=torch.Generator().manual_seed(seed))


def random_fusion(point_channels: int, rgb_channels: int) -> FeatureFusionBlock:
    """UFF whose norms and biases are not those of initialisation."""
    fusion = FeatureFusionBlock(point_channels, rgb_channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return fusion.eval()


@pytest.mark.parametrize("side", [56, 28])
def test_plain_fusion_repeats_each_token_and_puts_the_points_first(side: int):
    points, tokens = random_rows(side**2, 3), random_rows(784, 2, seed=1)
    fused = reference.fuse(points, tokens, None)
    assert torch.equal(fused[:, :3], points)
    for row, column in ((0, 0), (side // 2 + 1, 3), (side - 1, side - 1)):
        token = (row * 28 // side) * 28 + column * 28 // side
        torch.testing.assert_close(fused[row * side + column, 3:], tokens[token])


def test_uff_is_norm_and_mlp_without_a_residual():
    fusion, points, tokens = random_fusion(6, 4), random_rows(3136, 6), random_rows(784, 4)
    fused = reference.fuse(points, tokens, fusion)
    assert fused.shape == (3136, 10)
    x = points[7]
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    x = fusion.xyz_mlp.fc1(x * fusion.xyz_norm.weight + fusion.xyz_norm.bias)
    x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    torch.testing.assert_close(fused[7, :6], fusion.xyz_mlp.fc2(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused[7, 6:], fusion.fuse_rgb(tokens[3]), rtol=1e-4, atol=1e-5)


def test_uff_is_read_back_from_its_graphs(tmp_path: Path):
    fusion = random_fusion(24, 16)
    graphs = export_uff_graphs(fusion, tmp_path, num_tokens=9)
    state = fusion.state_dict()
    for side, name in (("xyz", "uff_point"), ("rgb", "uff_rgb")):
        weights = reference._half_of_fusion(graphs[name], named=graphs[name])
        assert set(weights) == {k[4:] for k in state if k.startswith(side) and "head" not in k}
        for key, value in weights.items():
            assert torch.equal(value, state[f"{side}_{key}"])
    value = onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, (1, 9, 16))
    graph = onnx.helper.make_graph([], "no network", [value], [value])
    onnx.save_model(onnx.helper.make_model(graph), graphs["uff_rgb"])
    with pytest.raises(ArtifactError, match=r"uff_rgb.*float32 graphs"):
        reference._half_of_fusion(graphs["uff_rgb"], named=graphs["uff_rgb"])


SCORING_CASES = {
    "three banks": {},
    "one bank": {"weight_epsilon": 1e-5},
    "two banks": {"distance_divisor": 1000.0},
    "paper": {"reweighting": "paper"},
    "none": {"reweighting": "none"},
}


@pytest.mark.parametrize("switches", SCORING_CASES.values(), ids=SCORING_CASES)
def test_image_score_is_the_farthest_distance_re_weighted(switches: dict):
    """Written out in NumPy float64, loops and all."""
    rows, bank = random_rows(40, 5).double(), random_rows(30, 5, seed=1).double()
    distances, nearest = torch.cdist(rows, bank).min(dim=1)
    options = parameters_of(**switches)
    score = float(memory_bank.image_score(rows, bank, distances, nearest, options))

    best = [
        min((np.linalg.norm(f - m), j) for j, m in enumerate(bank.numpy())) for f in rows.numpy()
    ]
    s_star, m_star = max(best)
    worst = rows.numpy()[best.index((s_star, m_star))]
    m = bank.numpy()
    around = sorted((np.linalg.norm(m[m_star] - m[j]), j) for j in range(len(m)))[:3]
    assert around[0] == (0, m_star)
    from_worst = [np.linalg.norm(worst - m[j]) for _, j in around]
    if switches.get("reweighting") == "paper":
        expected = s_star * (1 - np.exp(s_star) / sum(np.exp(from_worst)))
    elif switches.get("reweighting") == "none":
        expected = s_star
    else:
        divisor = switches.get("distance_divisor", 1.0)
        two = sum(math.exp(d / divisor / math.sqrt(5)) for d in from_worst[1:])
        two += switches.get("weight_epsilon", 0.0)
        expected = s_star / divisor * (1 - math.exp(s_star / divisor / math.sqrt(5)) / two)
    assert score == pytest.approx(expected, rel=1e-9)


def test_the_row_itself_is_no_neighbour_but_its_duplicate_is():
    bank = torch.tensor([[0.0, 0], [3, 4], [3, 4], [100, 0]])
    rows = torch.tensor([[3.0, 5]])
    distances, nearest = torch.cdist(rows, bank).min(dim=1)
    assert nearest.tolist() == [1]
    options = parameters_of()
    score = float(memory_bank.image_score(rows, bank, distances, nearest, options))
    exps = [math.exp(d / math.sqrt(2)) for d in (1, 1, math.sqrt(34))]
    assert score == pytest.approx(1 - exps[0] / (exps[1] + exps[2]))


def test_weights_of_large_distances_do_not_overflow_as_in_the_paper():
    bank, rows = random_rows(30, 5, seed=1), 1e4 * random_rows(40, 5)
    distances, nearest = torch.cdist(rows, bank).min(dim=1)
    options = parameters_of(reweighting="paper")
    score = float(memory_bank.image_score(rows, bank, distances, nearest, options))
    assert 2 / 3 * float(distances.max()) <= score <= float(distances.max())


@pytest.mark.parametrize("cdist", ["direct", "expanded"])
def test_a_bank_scores_normalised_patches(cdist: str):
    patches = random_rows(784, 8)
    mean, std = 0.3, 2.5
    bank = (patches[::7] + 0.01 - mean) / std
    parameters = parameters_of("rgb", blur="float", bank_scales={"rgb": (mean, std)})
    options = ReferenceOptions.of(parameters, cdist=cdist)
    scores = reference.score_bank("rgb", DensePatches({"rgb": patches}, None), bank, options, 112)
    assert scores.map.shape == (112, 112)
    assert scores.nearest[::7].tolist() == list(range(112))
    np.testing.assert_allclose(scores.distances[::7], 0.01 * math.sqrt(8) / std, rtol=0.02)


def test_distances_are_upsampled_bilinearly_before_the_blur():
    """A ramp stays a ramp, away from the edges."""
    ramp = torch.arange(28.0)[:, None].expand(28, 28).reshape(784, 1)
    options = ReferenceOptions.of(parameters_of("rgb", blur="float"))
    patches = DensePatches({"rgb": ramp + 1}, None)
    scores = reference.score_bank("rgb", patches, torch.zeros(1, 1).repeat(4, 1), options, 224)
    expected = (torch.arange(224) + 0.5) / 8 - 0.5 + 1
    np.testing.assert_allclose(scores.map[24:-24, 100], expected[24:-24], rtol=1e-5)


def test_8_bit_blur_keeps_256_levels_of_the_maximum():
    line = torch.linspace(0, 6, 64)
    image = 7 * torch.sin(line)[:, None] ** 2 * torch.cos(line) ** 2
    blurred = memory_bank.blur_8bit(image)
    levels = blurred / image.max() * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    inside = slice(12, -12)
    difference = (blurred - memory_bank.blur_float(image))[inside, inside]
    assert 0 < difference.abs().max() < 0.02 * image.max()


def test_8_bit_blur_rounds_down_first():
    """A flat picture of 99.9 % of one level below the maximum, save one far pixel."""
    image = torch.full((96, 96), (199.9 / 255) * 2.0)
    image[0, 0] = 2.0
    assert float(memory_bank.blur_8bit(image)[90, 90]) == pytest.approx(199 / 255 * 2.0)


def test_blurs_of_nothing_are_nothing():
    nothing = torch.zeros(20, 20)
    assert torch.equal(memory_bank.blur_8bit(nothing), nothing)
    assert torch.equal(memory_bank.blur_float(nothing), nothing)


def test_float_blur_is_a_gaussian_of_sigma_4():
    impulse = torch.zeros(65, 65, dtype=torch.float64)
    impulse[32, 32] = 1
    profile = memory_bank.blur_float(impulse).sum(dim=0)
    offsets = torch.arange(65) - 32.0
    assert float(profile.sum()) == pytest.approx(1)
    assert float((profile * offsets**2).sum()) == pytest.approx(16, rel=0.01)
    flat = torch.full((40, 40), 3.0)
    torch.testing.assert_close(memory_bank.blur_float(flat), flat)  # edges are repeated


def test_decision_is_a_weighted_sum():
    one = np.ones((4, 4), np.float32)
    banks = {
        "point": BankScores(2.0, one, one.ravel(), np.zeros(16, np.int64)),
        "rgb": BankScores(3.0, 5 * one, one.ravel(), np.zeros(16, np.int64)),
    }
    parameters = parameters_of(
        "point",
        "rgb",
        score_weights={"point": 0.5, "rgb": 10.0},
        map_weights={"point": -1.0, "rgb": 2.0},
        score_offset=-1.0,
        map_offset=0.25,
    )
    scores = reference.decide(banks, parameters)
    assert scores.image_score == 30.0
    np.testing.assert_array_equal(scores.anomaly_map, 9.25 * one)


def patches_of(*banks: str, scans: int = 2) -> list[DensePatches]:
    rows = {"point": (600, 180), "rgb": (150, 170), "fusion": (600, 350)}
    return [
        DensePatches(
            {name: random_rows(*rows[name], seed=10 * scan + len(name)) + 1 for name in banks}, None
        )
        for scan in range(scans)
    ]


def test_three_banks_share_the_points_mean_and_the_tokens_deviation():
    scans = patches_of("point", "rgb", "fusion")
    dense = {name: torch.cat([scan.banks[name] for scan in scans]) for name in scans[0].banks}
    dense["rgb"] *= 3
    shared = reference_banks.bank_scales(dense, "published")
    mean, std = dense["point"].double().mean(), dense["rgb"].double().std(unbiased=True)
    for scale in shared.values():
        assert scale == pytest.approx((float(mean), float(std)), rel=1e-5)
    own = reference_banks.bank_scales(dense, "own")
    assert own["rgb"][0] == pytest.approx(float(dense["rgb"].mean()))


@pytest.mark.parametrize("bank", ["point", "rgb", "fusion"])
def test_one_bank_is_normalised_only_if_it_is_rgb(bank: str):
    scans = patches_of(bank, scans=1)
    scale = reference_banks.bank_scales(scans[0].banks, "published")[bank]
    if bank == "rgb":
        assert scale == pytest.approx((1, 1), abs=0.02)
        assert scale != (0.0, 1.0)
    else:
        assert scale == (0.0, 1.0)


def test_counts_of_the_code_for_bagel():
    rows = {"point": 244 * 3136, "rgb": 244 * 784, "fusion": 244 * 3136}
    code = reference_banks.coreset_sizes(rows, "code")
    assert code == {"point": 76518, "rgb": 7651, "fusion": 7651}
    paper = reference_banks.coreset_sizes(rows, "paper")
    assert paper == {"point": 76518, "rgb": 19129, "fusion": 76518}
    assert reference_banks.coreset_sizes({"rgb": 244 * 784}, "code") == {"rgb": 19129}


def test_projection_has_the_published_width_or_is_left_out():
    assert memory_bank.project(random_rows(3136, 500), 0).shape == (3136, 198)
    narrow = random_rows(3136, 100)
    assert memory_bank.project(narrow, 0) is narrow


def test_greedy_takes_the_farthest_row_and_ends_when_nothing_is_left():
    rows = torch.tensor([[0.0], [1], [10], [4], [10]])
    assert memory_bank.reference_coreset(rows, 3).tolist() == [0, 2, 3]
    assert memory_bank.reference_coreset(rows, 5).tolist() == [0, 2, 3, 1]


def test_greedy_is_the_published_loop():
    """With the running minimum, and the chosen row's distance set to 0, as the code has it."""
    rows = random_rows(300, 6).double()
    nearest = (rows - rows[0]).norm(dim=1)
    chosen, last = [0], 0
    for _ in range(49):
        nearest = torch.minimum(nearest, (rows - rows[last]).norm(dim=1))
        last = int(nearest.argmax())
        nearest[last] = 0
        chosen.append(last)
    assert memory_bank.reference_coreset(rows, 50).tolist() == chosen


def test_the_point_bank_of_several_loses_rows_with_a_zero_and_gains_a_row_of_zeros():
    scans = patches_of("point", "rgb", scans=1)
    scans[0].banks["point"][:5] = scans[0].banks["point"].mean()  # as good as nothing: zeros
    banks = reference_banks.reference_banks(scans, parameters_of("point", "rgb"))
    point, rgb = banks.rows["point"], banks.rows["rgb"]
    assert len(banks.chosen["point"]) == 60
    assert len(rgb) == 6
    assert (point[-1] == 0).all()
    assert (point[:-1] != 0).all()
    mean, std = banks.scales["point"]
    scan_row = int(banks.chosen["point"][1])
    torch.testing.assert_close(point[1] * std + mean, scans[0].banks["point"][scan_row])
    alone = reference_banks.reference_banks(patches_of("point", scans=1), parameters_of("point"))
    assert len(alone.rows["point"]) == 60


def bank_scores(seed: int) -> dict[str, BankScores]:
    rng = np.random.default_rng(seed)
    return {
        name: BankScores(
            float(rng.uniform(1, 2)),
            rng.uniform(0, scale, (16, 16)).astype(np.float32),
            np.zeros(1),
            np.zeros(1, np.int64),
        )
        for name, scale in (("point", 1.0), ("rgb", 4.0), ("fusion", 2.0))
    }


def test_decision_layer_weighs_what_the_lambdas_have_scaled():
    from sklearn.linear_model import SGDOneClassSVM

    scans = [bank_scores(seed) for seed in range(6)]
    decision = reference_banks.reference_decision(scans, "svm")
    samples = np.array([[s["point"].score, 0.1 * s["rgb"].score, s["fusion"].score] for s in scans])
    svm = SGDOneClassSVM(nu=0.5, max_iter=1000, random_state=42).fit(samples)
    parameters = parameters_of(
        score_weights=decision.score_weights, map_weights=decision.map_weights
    )
    for scan, expected in zip(scans, svm.score_samples(samples), strict=True):
        assert reference.decide(scan, parameters).image_score == pytest.approx(expected)
    assert decision.score_offset == 0
    shifted = reference_banks.reference_decision(scans, "svm", "decision_function")
    parameters = replace(parameters, score_offset=shifted.score_offset)
    for scan, expected in zip(scans, svm.decision_function(samples), strict=True):
        assert reference.decide(scan, parameters).image_score == pytest.approx(expected)


def test_added_scores_have_the_lambdas():
    decision = reference_banks.reference_decision([bank_scores(0)], "sum")
    assert decision.score_weights == {"point": 1.0, "rgb": 0.1, "fusion": 1.0}
    assert decision.map_weights == decision.score_weights


def test_group_distances_are_spread_as_features_are():
    """The map of equal distances is that of the object's coverage."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.arange(12 * 40, 28 * 40)
    points = torch.rand(len(pixels), 3, generator=generator)
    centers = points[::40]
    options = ReferenceOptions.of(parameters_of("point", point_patches="groups"))
    distances = torch.full((len(centers),), 2.0)
    spread = reference._group_map(distances, (centers, points, pixels), options, 40)
    covered = torch.zeros(1, 1, 40, 40)
    covered.view(-1)[pixels] = 2.0
    expected = F.adaptive_avg_pool2d(F.avg_pool2d(covered, 3, stride=1), (40, 40))[0, 0]
    torch.testing.assert_close(spread, expected)
