from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ops.feature_cases import MappingCase, mapping_case, mapping_network, sparse_rows

from mmad_fast import _kernels
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.ops.pixel_mapping import MappingNetwork, bilinear_rows, pixel_mapping
from mmad_fast.ops.pixel_mapping import reference as definition
from mmad_fast.ops.pixel_mapping.network import rotated_layer
from mmad_fast.ops.sparse_rows import SparseRows

GUARD = 64
SHAPES: dict[str, dict] = {
    "one pixel, width 1": {"num_pixels": 1, "sizes": (1, 1, 1), "token_grid": 1, "num_groups": 1},
    "two layers": {"num_pixels": 63, "sizes": (7, 63, 5)},
    "three layers": {"num_pixels": 225},
    "seven layers": {"num_pixels": 113, "sizes": (9, 21, 21, 21, 21, 21, 21, 33)},
    "odd sizes": {"num_pixels": 1025, "sizes": (7, 63, 65, 7), "token_grid": 7},
    "more than one depth block": {"num_pixels": 40, "sizes": (300, 513, 260, 257)},
    "empty rows": {"num_pixels": 225, "max_entries": 2, "keep_empty": True},
}


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    count = _kernels.num_threads()
    yield
    _kernels.set_num_threads(count)


def truth(case: MappingCase) -> NDArray[np.float32]:
    network = case.network
    return definition.pixel_mapping(*case.arguments[:4], network.weights, network.biases)


def plain_float32(case: MappingCase) -> NDArray[np.float32]:
    """What one would write in NumPy with float32 arrays."""
    activations = case.source_rows.apply(case.source_features)
    last = len(case.network.weights) - 1
    for layer in range(last + 1):
        activations = activations @ case.network.weights[layer].T + case.network.biases[layer]
        if layer < last:
            erf = definition.erf(activations / np.float32(math.sqrt(2))).astype(np.float32)
            activations = np.float32(0.5) * activations * (1 + erf)
    target = case.target_rows.apply(case.target_features)

    def unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-12))

    return np.linalg.norm(unit(activations) - unit(target), axis=1)


@pytest.mark.parametrize("name", SHAPES)
def test_cpu_error_is_at_most_twice_that_of_plain_float32(name: str) -> None:
    case = mapping_case(**SHAPES[name])
    expected = truth(case)
    plain = np.abs(plain_float32(case) - expected).max()
    found = pixel_mapping(*case.arguments, backend="cpu")
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 2 * plain + 5e-7


def last_weight(name: str, out: int, hidden: int) -> NDArray[np.float32]:
    """Weights (out, hidden) that a decomposition may stumble over."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((out, hidden)) / np.sqrt(hidden)
    if name == "rank deficient":
        weight[:, 1::2] = weight[:, : len(weight[0]) // 2]
        weight[out // 2 :] = weight[: out - out // 2]
    elif name == "zero":
        weight[:] = 0
    elif name == "zero columns first":
        weight[:, : hidden // 2] = 0
    elif name == "orthogonal":
        weight = np.linalg.qr(rng.standard_normal((max(out, hidden),) * 2))[0][:out, :hidden]
    return weight.astype(np.float32)


LAST_SHAPES = [(1, 1), (1, 7), (7, 1), (63, 97), (65, 65), (257, 130), (130, 257)]
LAST_WEIGHTS = ["random", "rank deficient", "zero", "zero columns first", "orthogonal"]


@pytest.mark.parametrize("name", LAST_WEIGHTS)
@pytest.mark.parametrize(("out", "hidden"), LAST_SHAPES)
@pytest.mark.parametrize("bias_scale", [0, 1])
def test_rotated_last_layer(name: str, out: int, hidden: int, bias_scale: int) -> None:
    case = mapping_case(70, sizes=(9, hidden, out))
    biases = (case.network.biases[0], case.network.biases[1] * np.float32(bias_scale))
    weights = (case.network.weights[0], last_weight(name, out, hidden))
    case = replace(case, network=MappingNetwork(weights, biases))
    expected = truth(case)
    plain = np.abs(plain_float32(case) - expected).max()
    assert np.abs(pixel_mapping(*case.arguments) - expected).max() <= 2 * plain + 5e-7


@pytest.mark.parametrize("name", LAST_WEIGHTS)
@pytest.mark.parametrize(("out", "hidden"), LAST_SHAPES)
def test_rotation_is_orthogonal_and_makes_the_weight_triangular(
    name: str, out: int, hidden: int
) -> None:
    weight = last_weight(name, out, hidden)
    bias = np.random.default_rng(0).standard_normal(out).astype(np.float32)
    rotation, rotated_weight, rotated_bias = rotated_layer(weight, bias)
    assert {array.dtype for array in (rotation, rotated_weight, rotated_bias)} == {
        np.dtype(np.float32)
    }
    exact = rotation.astype(np.float64)
    np.testing.assert_allclose(exact @ exact.T, np.eye(out), atol=1e-6)
    np.testing.assert_allclose(exact.T @ rotated_weight, weight, atol=1e-6)
    np.testing.assert_allclose(exact.T @ rotated_bias, bias, atol=2e-6)
    assert not np.tril(rotated_weight, -1).any()


def test_a_stored_rotation_is_taken_and_gives_the_same_bits() -> None:
    case = mapping_case(70, sizes=(9, 12, 17))
    tensors = named_tensors(case.network, "net.")
    tensors |= case.network.rotated_tensors("net.")
    stored = MappingNetwork.from_tensors(tensors, "net.")
    assert stored.rotated is stored.stored_rotation
    expected = pixel_mapping(*case.arguments)
    arguments = replace(case, network=stored).arguments
    np.testing.assert_array_equal(pixel_mapping(*arguments), expected)
    tensors["rotated.net.bias"] = -tensors["rotated.net.bias"]
    arguments = replace(case, network=MappingNetwork.from_tensors(tensors, "net.")).arguments
    assert np.abs(pixel_mapping(*arguments) - expected).max() > 1e-3  # so it is read, not computed


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("rotation", lambda array: array[:-1], r"rotation is float32 of shape \(16, 17\); it must"),
        ("weight", lambda array: array.astype(np.float64), "weight is float64"),
        ("bias", lambda array: array * np.nan, "bias is float32 .* finite"),
        ("bias", None, "lacks rotated.net.bias"),
    ],
)
def test_a_stored_rotation_that_does_not_fit_is_refused(key: str, change, message: str) -> None:
    network = mapping_case(7, sizes=(9, 12, 17)).network
    tensors = {**named_tensors(network, "net."), **network.rotated_tensors("net.")}
    array = tensors.pop(f"rotated.net.{key}")
    if change is not None:
        tensors[f"rotated.net.{key}"] = change(array)
    with pytest.raises(InvalidInputError, match=message):
        MappingNetwork.from_tensors(tensors, "net.")


def named_tensors(network: MappingNetwork, prefix: str) -> dict[str, np.ndarray]:
    tensors = {}
    for layer, weight, bias in zip(
        ("input", "output"), network.weights, network.biases, strict=True
    ):
        tensors |= {f"{prefix}{layer}.weight": weight, f"{prefix}{layer}.bias": bias}
    return tensors


def test_tokens_that_no_pixel_uses_change_no_bit() -> None:
    case = mapping_case(30, token_grid=9)
    expected = pixel_mapping(*case.arguments)
    source, target = case.source_features.copy(), case.target_features.copy()
    unused = np.setdiff1d(np.arange(len(source)), case.source_rows.columns)
    assert len(unused)
    source[unused] = 1e18
    target[np.setdiff1d(np.arange(len(target)), case.target_rows.columns)] = 1e18
    other = replace(case, source_features=source, target_features=target)
    np.testing.assert_array_equal(pixel_mapping(*other.arguments), expected)


def test_packed_network_gives_the_same_on_the_cpu_backend_alone() -> None:
    case = mapping_case(63)
    *arrays, network = case.arguments
    packed = network.packed
    assert (packed.in_channels, packed.out_channels) == (20, 17)
    np.testing.assert_array_equal(
        pixel_mapping(*arrays, packed, backend="cpu"), pixel_mapping(*arrays, network)
    )
    with pytest.raises(InvalidInputError, match="packed for the cpu backend .* reference"):
        pixel_mapping(*arrays, packed, backend="reference")


@pytest.mark.parametrize("layers", [3, 7])
def test_against_dense_torch(layers: int) -> None:
    torch = pytest.importorskip("torch")
    sizes = (48, *[72] * (layers - 1), 96)
    case = mapping_case(150, sizes=sizes, token_grid=7)
    modules: list = []
    for weight, bias in zip(case.network.weights, case.network.biases, strict=True):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        linear.weight.data = torch.from_numpy(weight.astype(np.float64))
        linear.bias.data = torch.from_numpy(bias.astype(np.float64))
        modules += [linear, torch.nn.GELU()]
    source = torch.from_numpy(case.source_rows.apply(case.source_features).astype(np.float64))
    target = torch.from_numpy(case.target_rows.apply(case.target_features).astype(np.float64))
    normalize = torch.nn.functional.normalize
    with torch.no_grad():
        prediction = torch.nn.Sequential(*modules[:-1])(source)
        psi = (normalize(prediction, dim=-1) - normalize(target, dim=-1)).norm(dim=-1).numpy()
    np.testing.assert_allclose(pixel_mapping(*case.arguments), psi, atol=3e-6)
    np.testing.assert_allclose(pixel_mapping(*case.arguments, backend="reference"), psi, atol=5e-7)


def test_small_discrepancies_keep_their_digits() -> None:
    """A target that is the prediction, turned by 1e-4: sqrt(2 - 2 cos) in float32 would say 0."""
    case = mapping_case(60, sizes=(20, 33, 40))
    predictions = definition.expand(case.source_rows, case.source_features)
    for layer in range(2):
        predictions = definition.gelu(predictions) if layer else predictions
        predictions = predictions @ case.network.weights[layer].T + case.network.biases[layer]
    sideways = np.random.default_rng(0).standard_normal(predictions.shape)
    predictions = definition.normalize(predictions)
    sideways -= (sideways * predictions).sum(1, keepdims=True) * predictions
    target = (predictions + 1e-4 * definition.normalize(sideways)).astype(np.float32)
    identity = SparseRows(np.arange(61), np.arange(60, dtype=np.int32), np.ones(60, np.float32), 60)
    psi = pixel_mapping(
        case.source_features, case.source_rows, target, identity, case.network, backend="cpu"
    )
    np.testing.assert_allclose(psi, 1e-4, rtol=1e-2)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_empty_rows_are_zero_features(backend: str) -> None:
    case = mapping_case(3)
    empty = SparseRows(
        np.zeros(4, np.int64),
        np.empty(0, np.int32),
        np.empty(0, np.float32),
        case.target_rows.num_columns,
    )
    psi = pixel_mapping(*replace(case, target_rows=empty).arguments, backend=backend)
    np.testing.assert_allclose(psi, 1, rtol=1e-6)
    silent = MappingNetwork(
        tuple(np.zeros_like(weight) for weight in case.network.weights),
        tuple(np.zeros_like(bias) for bias in case.network.biases),
    )
    nothing = replace(case, target_rows=empty, network=silent)
    np.testing.assert_array_equal(pixel_mapping(*nothing.arguments, backend=backend), np.zeros(3))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_pixels_give_an_empty_result(backend: str) -> None:
    psi = pixel_mapping(*mapping_case(0).arguments, backend=backend)
    assert psi.shape == (0,)
    assert psi.dtype == np.float32


@pytest.mark.parametrize("num_pixels", [1, 7, 112, 113, 1025])
def test_kernel_writes_its_output_and_nothing_else(num_pixels: int) -> None:
    case = mapping_case(num_pixels)
    buffer = np.full(num_pixels + 2 * GUARD, np.nan, np.float32)
    rows, others = case.source_rows, case.target_rows
    _kernels.pixel_mapping(
        case.source_features,
        rows.offsets,
        rows.columns,
        rows.values,
        case.target_features,
        others.offsets,
        others.columns,
        others.values,
        case.network.kernel_network,
        buffer[GUARD:-GUARD],
    )
    assert np.isfinite(buffer[GUARD:-GUARD]).all()
    assert np.isnan(buffer[:GUARD]).all()
    assert np.isnan(buffer[-GUARD:]).all()


@pytest.mark.usefixtures("_restore_threads")
def test_number_of_threads_changes_no_bit() -> None:
    case = mapping_case(1025)
    results = []
    for count in (1, 2, 7):
        _kernels.set_num_threads(count)
        results.append(pixel_mapping(*case.arguments))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_concurrent_callers_of_a_new_network_agree() -> None:
    case = mapping_case(500)
    expected = pixel_mapping(*case.arguments)
    fresh = replace(case, network=MappingNetwork(case.network.weights, case.network.biases))
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: pixel_mapping(*fresh.arguments), range(8)))
    for result in results:
        np.testing.assert_array_equal(result, expected)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), num_pixels=st.integers(1, 250))
def test_any_subset_of_pixels_in_any_order_gives_the_same_values(
    seed: int, num_pixels: int
) -> None:
    case = mapping_case(num_pixels, seed=seed)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(num_pixels)[: rng.integers(1, num_pixels + 1)]
    part = replace(
        case,
        source_rows=case.source_rows.select(chosen),
        target_rows=case.target_rows.select(chosen),
    )
    whole = pixel_mapping(*case.arguments)
    np.testing.assert_array_equal(pixel_mapping(*part.arguments), whole[chosen])


@settings(derandomize=True, deadline=None, max_examples=20)
@given(exponent=st.integers(-20, 20))
def test_scale_of_the_target_does_not_matter(exponent: int) -> None:
    case = mapping_case(63)
    scaled = replace(case, target_features=case.target_features * np.float32(2.0**exponent))
    np.testing.assert_allclose(
        pixel_mapping(*scaled.arguments), pixel_mapping(*case.arguments), rtol=1e-6
    )


def test_strided_read_only_and_float64_features() -> None:
    case = mapping_case(63)
    expected = pixel_mapping(*case.arguments)
    source = np.asfortranarray(case.source_features)
    source.flags.writeable = False
    target = np.repeat(case.target_features, 2, axis=0)[::2].astype(np.float64)
    other = replace(case, source_features=source, target_features=target)
    np.testing.assert_array_equal(pixel_mapping(*other.arguments), expected)


def test_refusals_of_features_and_rows() -> None:
    case = mapping_case(63)

    def refused(match: str, **changes: object) -> None:
        with pytest.raises(InvalidInputError, match=match):
            pixel_mapping(*replace(case, **changes).arguments)

    refused(r"\(25, 19\).*\(40, 17\).*maps 20 channels to 17", source_features=np.ones((25, 19)))
    refused("source_rows has 25 columns .* shape", source_features=np.ones((24, 20)))
    refused("63 pixels and target_rows has 62", target_rows=case.target_rows.select(np.arange(62)))
    refused("source_rows is a ndarray", source_rows=np.eye(3))
    refused("source_features has a NaN", source_features=np.full((25, 20), np.nan))
    loud = MappingNetwork(tuple(w * 1e17 for w in case.network.weights), case.network.biases)
    refused("psi is not finite .* range of float32", network=loud)
    with pytest.raises(BackendUnavailableError, match="known are auto, cpu, triton, reference"):
        pixel_mapping(*case.arguments, backend="gpu")


@pytest.mark.parametrize("inner", [["projection"], [f"projection_{x}" for x in "abcde"]])
def test_network_from_official_keys(inner: list[str]) -> None:
    layers = ["input", *inner, "output"]
    network = mapping_network((4, *[6] * (len(layers) - 1), 5))
    tensors = {"psi.other": np.zeros(3)}
    for layer, weight, bias in zip(layers, network.weights, network.biases, strict=True):
        tensors |= {f"net.{layer}.weight": weight, f"net.{layer}.bias": bias}
    loaded = MappingNetwork.from_tensors(dict(reversed(tensors.items())), "net.")
    assert len(loaded.weights) == len(layers)
    for found, expected in zip(loaded.weights, network.weights, strict=True):
        np.testing.assert_array_equal(found, expected)
    del tensors["net.output.bias"]
    with pytest.raises(InvalidInputError, match=r"lacks net\.output\.bias"):
        MappingNetwork.from_tensors(tensors, "net.")


def test_refusals_of_networks() -> None:
    network = mapping_network((4, 6, 5))
    with pytest.raises(InvalidInputError, match="1 weights and 1 biases; .* at least 2 layers"):
        MappingNetwork(network.weights[:1], network.biases[:1])
    with pytest.raises(InvalidInputError, match=r"weight 1 has shape \(6, 4\).*must be 6"):
        MappingNetwork(network.weights[:1] * 2, network.biases[:1] * 2)
    with pytest.raises(
        InvalidInputError, match=r"bias 0 has shape \(5,\).*must be one vector \(6,\)"
    ):
        MappingNetwork(network.weights, network.biases[::-1])
    with pytest.raises(InvalidInputError, match="bias 1 has a NaN"):
        MappingNetwork(network.weights, (network.biases[0], network.biases[1] * np.nan))


def test_gelu_against_math_erf() -> None:
    x = np.concatenate(
        [np.linspace(-12, 12, 100_001), [0.0, 1e-30, -1e-30, 50, -50, 1e18, -1e18]]
    ).astype(np.float32)
    buffer = np.full(len(x) + 2 * GUARD, np.nan, np.float32)
    _kernels.gelu(x, buffer[GUARD:-GUARD])
    exact = definition.gelu(x.astype(np.float64))
    error = np.abs(buffer[GUARD:-GUARD] - exact)
    assert (error <= 1.5e-7 + 6e-8 * np.maximum(x, 0)).all()
    assert np.isnan(np.delete(buffer, slice(GUARD, -GUARD))).all()


@pytest.mark.parametrize(
    ("token_grid", "output_size"), [(28, 224), (7, 10), (5, 5), (9, 4), (1, 3)]
)
def test_bilinear_rows_against_torch(token_grid: int, output_size: int) -> None:
    torch = pytest.importorskip("torch")
    tokens = np.random.default_rng(0).standard_normal((token_grid**2, 3))
    grid = torch.from_numpy(tokens.T.reshape(1, 3, token_grid, token_grid))
    dense = torch.nn.functional.interpolate(
        grid, size=(output_size, output_size), mode="bilinear", align_corners=False
    )
    expected = dense[0].reshape(3, -1).T.numpy()
    rows = bilinear_rows(np.arange(output_size**2), token_grid=token_grid, output_size=output_size)
    np.testing.assert_allclose(definition.expand(rows, tokens), expected, atol=1e-6)


def test_bilinear_rows_are_well_formed() -> None:
    pixels = np.random.default_rng(0).permutation(224 * 224)[:1025]
    rows = bilinear_rows(pixels, token_grid=28)
    assert rows.num_rows == 1025
    assert rows.num_columns == 784
    assert rows.columns.dtype == np.int32
    assert rows.values.dtype == np.float32
    assert (rows.values > 0).all()
    np.testing.assert_allclose(np.add.reduceat(rows.values, rows.offsets[:-1]), 1, rtol=1e-6)
    starts = np.zeros(len(rows.columns), bool)
    starts[rows.offsets[:-1]] = True
    assert (np.diff(rows.columns)[~starts[1:]] > 0).all()
    assert bilinear_rows(np.empty(0, np.int64), token_grid=28).num_rows == 0
    with pytest.raises(
        InvalidInputError, match="pixel_indices holds 50176; it must be in 0..50175"
    ):
        bilinear_rows(np.array([50176]), token_grid=28)
    with pytest.raises(InvalidInputError, match="token_grid is 0"):
        bilinear_rows(pixels, token_grid=0)


def test_case_rows_cover_empty_and_long_rows() -> None:
    lengths = np.diff(sparse_rows(225, 40, max_entries=9, keep_empty=True).offsets)
    assert lengths.min() == 0
    assert lengths.max() == 9
