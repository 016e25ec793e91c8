"""The Triton backend of pixel_mapping against the definition: interpreted, or on a CUDA device."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray
from ops.feature_cases import MappingCase, mapping_case

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.architectures import ARCHITECTURES
from mmad_fast.ops.pixel_mapping import MappingNetwork
from mmad_fast.ops.pixel_mapping import reference as definition
from mmad_fast.ops.pixel_mapping.network import rotated_layer
from mmad_fast.ops.sparse_rows import SparseRows

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from mmad_fast.ops.pixel_mapping import triton_kernel  # noqa: E402
from mmad_fast.ops.pixel_mapping.device_network import device_network  # noqa: E402

GUARD = 64
HALF = ["float16", "bfloat16"]
SHAPES: dict[str, dict] = {
    "one pixel, width 1": {"num_pixels": 1, "sizes": (1, 1, 1), "token_grid": 1, "num_groups": 1},
    "two layers": {"num_pixels": 63, "sizes": (7, 17, 24)},
    "three layers, three strips": {"num_pixels": 130},
    "whole strips": {"num_pixels": 64, "sizes": (24, 32, 32, 40)},
    "seven layers": {"num_pixels": 63, "sizes": (9, 21, 21, 21, 21, 21, 21, 33)},
    "hidden layers of several widths": {"num_pixels": 20, "sizes": (40, 17, 70, 7, 24)},
    "wider than one tile": {"num_pixels": 40, "sizes": (70, 150, 130, 140)},
    "fewer outputs than inputs": {"num_pixels": 40, "sizes": (140, 80, 80, 7)},
    "empty rows": {"num_pixels": 130, "max_entries": 2, "keep_empty": True},
    "long rows": {"num_pixels": 63, "num_groups": 60, "max_entries": 48},
}


def on_device(array: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(TEST_DEVICE)


def device_arguments(case: MappingCase) -> list[torch.Tensor]:
    return [
        on_device(array)
        for features, rows in (
            (case.source_features, case.source_rows),
            (case.target_features, case.target_rows),
        )
        for array in (features, rows.offsets, rows.columns, rows.values)
    ]


def mapped(case: MappingCase, precision: str = "float32") -> NDArray[np.float32]:
    """psi, written into the middle of NaN, of which nothing else may change."""
    num_pixels = case.source_rows.num_rows
    buffer = torch.full((num_pixels + 2 * GUARD,), math.nan, device=TEST_DEVICE)
    network = device_network(case.network, TEST_DEVICE, precision)
    out = buffer[GUARD : GUARD + num_pixels]
    assert triton_kernel.pixel_mapping(*device_arguments(case), network, out=out) is out
    found = buffer.cpu().numpy()
    assert np.isnan(found[:GUARD]).all()
    assert np.isnan(found[GUARD + num_pixels :]).all()
    return found[GUARD : GUARD + num_pixels]


def truth(case: MappingCase) -> NDArray[np.float32]:
    network = case.network
    return definition.pixel_mapping(*case.arguments[:4], network.weights, network.biases)


def unit_distance(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    x, y = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        for rows in (x, y)
    )
    return np.linalg.norm(x - y, axis=1)


def plain_gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    erf = definition.erf(x / np.float32(math.sqrt(2))).astype(np.float32)
    return np.float32(0.5) * x * (1 + erf)


Layer = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]


def plain_float32(
    case: MappingCase, multiply: Layer = lambda x, weight: x @ weight.T
) -> NDArray[np.float32]:
    """What one would write in NumPy with float32 arrays."""
    x = case.source_rows.apply(case.source_features)
    for layer, (weight, bias) in enumerate(
        zip(case.network.weights, case.network.biases, strict=True)
    ):
        x = multiply(plain_gelu(x) if layer else x, weight) + bias
    return unit_distance(x, case.target_rows.apply(case.target_features))


def plain_half(case: MappingCase, precision: str) -> NDArray[np.float32]:
    """What one would write in torch with tensors of a half type, and norms in float32."""
    dtype = getattr(torch, precision)

    def expand(rows: SparseRows, features: NDArray[np.float32]) -> torch.Tensor:
        dense = rows.apply(np.eye(rows.num_columns, dtype=np.float32))
        return torch.from_numpy(dense).to(dtype) @ torch.from_numpy(features).to(dtype)

    x = expand(case.source_rows, case.source_features)
    for layer, arrays in enumerate(zip(case.network.weights, case.network.biases, strict=True)):
        weight, bias = (torch.from_numpy(array).to(dtype) for array in arrays)
        x = torch.nn.functional.linear(torch.nn.functional.gelu(x) if layer else x, weight, bias)
    target = expand(case.target_rows, case.target_features)
    return unit_distance(x.float().numpy(), target.float().numpy())


def assert_as_exact_as_plain_float32(case: MappingCase) -> None:
    """At most twice its error."""
    expected = truth(case)
    plain = np.abs(plain_float32(case) - expected).max()
    assert np.abs(mapped(case) - expected).max() <= 2 * plain + 5e-7


@pytest.mark.parametrize("name", SHAPES)
def test_error_is_at_most_twice_that_of_plain_float32(name: str) -> None:
    assert_as_exact_as_plain_float32(mapping_case(**SHAPES[name]))


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", ["two layers", "three layers, three strips", "seven layers"])
def test_error_is_at_most_twice_that_of_plain_half_code(name: str, precision: str) -> None:
    case = mapping_case(**SHAPES[name])
    expected = truth(case)
    plain = np.abs(plain_half(case, precision) - expected).max()
    error = np.abs(mapped(case, precision) - expected).max()
    assert 1e-5 < error <= 2 * plain  # the precision asked for is the one that ran


def tf32(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to 10 bits behind the leading one, ties away from zero."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def tensor_core_sum(
    a: NDArray[np.float32], b: NDArray[np.float32], accumulator: NDArray[np.float64]
) -> NDArray[np.float64]:
    """accumulator (M, N) + a (M, 8) @ b (N, 8).T as the plainest tensor core adds: all addends
    shifted to the largest, cut off behind 24 bits."""
    products = a.astype(np.float64)[:, None, :] * b[None]
    addends = np.concatenate([accumulator[..., None], products], axis=-1)
    _, exponent = np.frexp(np.abs(addends).max(axis=-1, keepdims=True))
    last_bit = np.ldexp(1.0, exponent - 24)
    return (np.trunc(addends / last_bit) * last_bit).sum(axis=-1)


def multiply_tf32x3(
    x: NDArray[np.float32], weight: NDArray[np.float32], block_k: int
) -> NDArray[np.float32]:
    """x @ weight.T as Triton's "tf32x3" rounds: three products per product, summed from zero by the
    tensor cores for block_k products, then added in float32."""
    x, weight = (np.pad(a, ((0, 0), (0, -a.shape[1] % block_k))) for a in (x, weight))
    x_large, weight_large = tf32(x), tf32(weight)
    x_small, weight_small = tf32(x - x_large), tf32(weight - weight_large)
    total = np.zeros((len(x), len(weight)), np.float32)
    for k in range(0, x.shape[1], block_k):
        partial = np.zeros(total.shape)
        for a, b in ((x_small, weight_large), (x_large, weight_small), (x_large, weight_large)):
            for step in range(k, k + block_k, 8):
                partial = tensor_core_sum(a[:, step : step + 8], b[:, step : step + 8], partial)
        total += partial.astype(np.float32)
    return total


@pytest.mark.parametrize("block_k", [16, 32])
def test_three_tf32_products_keep_the_bound_of_float32(block_k: int) -> None:
    case = mapping_case(6, sizes=(384, 480, 480, 576))
    expected = truth(case)
    plain = np.abs(plain_float32(case) - expected).max()
    found = plain_float32(case, lambda x, weight: multiply_tf32x3(x, weight, block_k))
    assert np.abs(found - expected).max() <= 2 * plain + 5e-7
    rounded = plain_float32(case, lambda x, weight: tf32(x) @ tf32(weight).T)
    assert np.abs(rounded - expected).max() > 10 * (2 * plain + 5e-7)  # one product would not do


def test_layer_of_three_tf32_products_is_as_exact_as_float32() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 960)).astype(np.float32)
    weight = rng.standard_normal((64, 960)).astype(np.float32)
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    in_order = np.zeros(exact.shape, np.float32)  # one float32 addition per product
    for k in range(960):
        in_order += x[:, k, None] * weight[:, k]
    errors = [np.linalg.norm(y - exact) for y in (multiply_tf32x3(x, weight, 16), in_order)]
    assert errors[0] <= 2 * errors[1]


def architectures() -> list[int]:
    """Those whose configurations can run here; interpreted, all of them."""
    if TEST_DEVICE == "cpu":
        return list(ARCHITECTURES)
    major, minor = torch.cuda.get_device_capability()
    return [10 * major + minor]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_every_configuration_computes_the_same(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = mapping_case(70, sizes=(20, 40, 17))
    expected = truth(case)
    tolerance = 5e-7 + 2 * np.abs(
        (plain_float32(case) if precision == "float32" else plain_half(case, precision)) - expected
    ).max(initial=0)
    pixels, tokens = triton_kernel._PIXELS[precision], triton_kernel._TOKEN_MAP[precision]
    pixel_configs = [c for sm in architectures() for c in pixels.configs_for(sm)]
    token_configs = [c for sm in architectures() for c in tokens.configs_for(sm)]
    seen = []
    for i, config in enumerate(pixel_configs):
        token_config = token_configs[i % len(token_configs)]
        if (config, token_config) in seen:
            continue
        seen.append((config, token_config))
        for kernel, only, table in (
            (pixels, config, triton_kernel._PIXELS),
            (tokens, token_config, triton_kernel._TOKEN_MAP),
        ):
            monkeypatch.setitem(table, precision, replace(kernel, configs={0: (only,)}))
        assert np.abs(mapped(case, precision) - expected).max() <= tolerance, config


def test_kernels_name_the_arguments_of_their_functions() -> None:
    assert len({kernel.name for kernel in triton_kernel.KERNELS}) == len(triton_kernel.KERNELS)
    for kernel in triton_kernel.KERNELS:
        function = getattr(triton_kernel, kernel.function)
        names = list(inspect.signature(function.fn).parameters)
        for sm in ARCHITECTURES:
            for config in kernel.configs_for(sm):
                assert [*kernel.arguments, *config.constants] == names
                tile = config.constants
                assert 128 % tile["BLOCK_N"] == 0
                assert 64 % tile["BLOCK_K"] == 0
                assert tile["BLOCK_N"] % tile["BLOCK_K"] == 0
                assert tile["BLOCK_N"] % tile.get("BLOCK_C", tile["BLOCK_N"]) == 0
                assert tile["TF32X3"] == ("float32" in kernel.name and sm != 75)


def identity_rows(count: int) -> SparseRows:
    return SparseRows(
        np.arange(count + 1), np.arange(count, dtype=np.int32), np.ones(count, np.float32), count
    )


def test_small_discrepancies_keep_their_digits() -> None:
    """A target that is the prediction, turned by 1e-4: sqrt(2 - 2 cos) in float32 would say 0."""
    case = mapping_case(60, sizes=(20, 33, 140))
    predictions = definition.expand(case.source_rows, case.source_features)
    for layer in range(2):
        predictions = definition.gelu(predictions) if layer else predictions
        predictions = predictions @ case.network.weights[layer].T + case.network.biases[layer]
    sideways = np.random.default_rng(0).standard_normal(predictions.shape)
    predictions = definition.normalize(predictions)
    sideways -= (sideways * predictions).sum(1, keepdims=True) * predictions
    target = (predictions + 1e-4 * definition.normalize(sideways)).astype(np.float32)
    case = replace(case, target_features=target, target_rows=identity_rows(60))
    np.testing.assert_allclose(mapped(case), 1e-4, rtol=1e-2)


def test_target_that_is_zero_in_a_part_of_its_channels() -> None:
    """Parts are fitted by themselves: one without target, one with a faint one, an opposite one."""
    case = mapping_case(60, sizes=(20, 33, 260), num_groups=60)
    rotation, _, _ = rotated_layer(case.network.weights[-1], case.network.biases[-1])
    rotated = np.random.default_rng(0).standard_normal((60, 260))
    rotated[:20, :64] = 0
    rotated[20:40, 64:256] *= 1e-9
    rotated[40:, 64:128] = 0
    target = (rotated @ rotation).astype(np.float32)
    case = replace(case, target_features=target, target_rows=identity_rows(60))
    assert_as_exact_as_plain_float32(case)
    opposite = MappingNetwork(
        (case.network.weights[0], case.network.weights[1] * 0),
        (case.network.biases[0], -target[0]),
    )
    row = replace(case, network=opposite, target_features=np.repeat(target[:1], 60, axis=0))
    np.testing.assert_allclose(mapped(row), 2, rtol=1e-6)


@pytest.mark.parametrize("exponent", [-40, -20, 20, 40])
def test_scale_of_the_target_does_not_matter(exponent: int) -> None:
    case = mapping_case(63)
    scaled = replace(case, target_features=case.target_features * np.float32(2.0**exponent))
    assert_as_exact_as_plain_float32(scaled)


@pytest.mark.parametrize("scale", [1e-15, 1e-12, 1e-3, 1e6])
def test_scale_of_the_source(scale: float) -> None:
    """Down to norms below the floor of 1e-12."""
    case = mapping_case(63)
    network = MappingNetwork(
        (*case.network.weights[:-1], case.network.weights[-1] * np.float32(scale)),
        (*case.network.biases[:-1], case.network.biases[-1] * np.float32(scale)),
    )
    case = replace(case, network=network)
    assert_as_exact_as_plain_float32(case)


def test_columns_may_repeat_within_a_row() -> None:
    case = mapping_case(63, num_groups=5)
    rng = np.random.default_rng(0)
    rows = SparseRows(
        np.arange(64) * 48,
        rng.integers(0, 5, 63 * 48).astype(np.int32),
        rng.uniform(0, 0.1, 63 * 48).astype(np.float32),
        5,
    )
    case = replace(case, target_rows=rows)
    assert_as_exact_as_plain_float32(case)


def unchecked(rows: SparseRows, **arrays: np.ndarray) -> SparseRows:
    """The rows with arrays that only a device's, whose contents nobody looks at, could have."""
    changed = copy(rows)
    for name, array in arrays.items():
        object.__setattr__(changed, name, array)
    return changed


def test_columns_and_offsets_outside_are_clamped() -> None:
    case = mapping_case(63)
    rows = case.target_rows
    columns = rows.columns.copy()
    first, last = columns == 0, columns == rows.num_columns - 1
    assert first.any()
    assert last.any()
    columns[first], columns[last] = -(2**31), 2**31 - 1
    wild = replace(case, target_rows=unchecked(rows, columns=columns))
    np.testing.assert_array_equal(mapped(wild), mapped(case))
    offsets = np.random.default_rng(0).integers(-(2**62), 2**62, 64)

    mapped(replace(case, target_rows=unchecked(rows, offsets=offsets)))  # ends, inside the arrays
    offsets = rows.offsets.copy()
    offsets[-1] = 2**40
    np.testing.assert_array_equal(
        mapped(replace(case, target_rows=unchecked(rows, offsets=offsets))), mapped(case)
    )


@pytest.mark.parametrize("num_groups", [0, 40])
def test_empty_rows_are_zero_features(num_groups: int) -> None:
    case = mapping_case(3)
    empty = SparseRows(
        np.zeros(4, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), num_groups
    )
    case = replace(case, target_rows=empty, target_features=case.target_features[:num_groups])
    np.testing.assert_allclose(mapped(case), 1, rtol=1e-6)
    silent = MappingNetwork(
        tuple(np.zeros_like(weight) for weight in case.network.weights),
        tuple(np.zeros_like(bias) for bias in case.network.biases),
    )
    np.testing.assert_array_equal(mapped(replace(case, network=silent)), np.zeros(3))
    both = replace(case, source_rows=replace(empty, num_columns=25))
    np.testing.assert_allclose(mapped(both), truth(both), rtol=1e-6)


def test_nan_reaches_the_pixels_that_use_it_and_no_other() -> None:
    case = mapping_case(63)
    for features, rows in (("source_features", "source_rows"), ("target_features", "target_rows")):
        spoiled = getattr(case, features).copy()
        spoiled[7, 3] = np.nan
        used = getattr(case, rows)
        users = np.searchsorted(used.offsets, np.flatnonzero(used.columns == 7), side="right") - 1
        found = np.isnan(mapped(replace(case, **{features: spoiled})))
        assert len(users)
        np.testing.assert_array_equal(np.flatnonzero(found), np.unique(users))


def test_no_pixels_give_an_empty_result_without_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "pixel_kernel", None)
    monkeypatch.setattr(triton_kernel, "token_map_kernel", None)
    case = mapping_case(0)
    network = device_network(case.network, TEST_DEVICE)
    psi = triton_kernel.pixel_mapping(*device_arguments(case), network)
    assert psi.shape == (0,)
    assert psi.dtype == torch.float32
    assert psi.device.type == TEST_DEVICE


def test_features_that_start_anywhere() -> None:
    case = mapping_case(20, sizes=(64, 33, 64))
    arguments = device_arguments(case)
    network = device_network(case.network, TEST_DEVICE)
    expected = triton_kernel.pixel_mapping(*arguments, network).cpu().numpy()
    for i in (0, 4):
        shifted = torch.empty(arguments[i].numel() + 1, device=TEST_DEVICE)[1:]
        arguments[i] = shifted.view(arguments[i].shape).copy_(arguments[i])
        assert arguments[i].data_ptr() % 16
    found = triton_kernel.pixel_mapping(*arguments, network).cpu().numpy()
    np.testing.assert_array_equal(found, expected)


def test_refusals() -> None:
    case = mapping_case(3)
    with pytest.raises(InvalidInputError, match="precision is 'float64'.*'float32', 'float16'"):
        device_network(case.network, TEST_DEVICE, "float64")
    network = device_network(case.network, TEST_DEVICE)
    arguments = device_arguments(case)
    arguments[0] = arguments[0][:, 1:].contiguous()
    with pytest.raises(InvalidInputError, match="19 and 17 channels.*maps 20 channels to 17"):
        triton_kernel.pixel_mapping(*arguments, network)
