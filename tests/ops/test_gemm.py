"""The packed GEMM under three of the ops, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from mmad_fast import _kernels

SIZES = [(1, 1, 1), (7, 63, 255), (8, 48, 256), (63, 7, 257), (113, 49, 1025), (225, 1025, 63)]
GUARD = 64


@pytest.fixture(params=["BASELINE", "AVX2", "AVX512"])
def instruction_set(request: pytest.FixtureRequest) -> _kernels.InstructionSet:
    chosen = getattr(_kernels.InstructionSet, request.param)
    if not _kernels.has_instruction_set(chosen):
        pytest.skip(f"this processor has no {request.param}")
    return chosen


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    count = _kernels.num_threads()
    yield
    _kernels.set_num_threads(count)


def multiply(a: NDArray, b: NDArray, instruction_set: _kernels.InstructionSet) -> NDArray:
    """a @ b.T, having checked that nothing around the output was touched."""
    buffer = np.full(len(a) * len(b) + 2 * GUARD, np.nan, np.float32)
    c = buffer[GUARD:-GUARD].reshape(len(a), len(b))
    _kernels.gemm(a, _kernels.PackedMatrix(b, instruction_set), c)
    assert np.isnan(buffer[:GUARD]).all()
    assert np.isnan(buffer[-GUARD:]).all()
    assert not np.isnan(c).any()
    return c.copy()


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_integers_are_multiplied_exactly(
    m: int, n: int, k: int, instruction_set: _kernels.InstructionSet
) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-50, 50, (m, k)).astype(np.float32)
    b = rng.integers(-50, 50, (n, k)).astype(np.float32)
    np.testing.assert_array_equal(multiply(a, b, instruction_set), a.astype(int) @ b.astype(int).T)


@pytest.mark.parametrize(("m", "n", "k"), [(63, 65, 255), (113, 49, 1025), (50, 50, 3000)])
def test_error_is_at_most_twice_that_of_plain_float32(
    m: int, n: int, k: int, instruction_set: _kernels.InstructionSet
) -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((m, k)).astype(np.float32)
    b = rng.standard_normal((n, k)).astype(np.float32)
    truth = a.astype(np.float64) @ b.astype(np.float64).T
    plain = np.abs(a @ b.T - truth).max()
    assert np.abs(multiply(a, b, instruction_set) - truth).max() <= 2 * plain + 1e-7


def test_number_of_threads_changes_no_bit(instruction_set: _kernels.InstructionSet) -> None:
    rng = np.random.default_rng(2)
    a = rng.standard_normal((300, 300)).astype(np.float32)
    b = rng.standard_normal((200, 300)).astype(np.float32)
    results = []
    for count in (1, 2, 7):
        _kernels.set_num_threads(count)
        results.append(multiply(a, b, instruction_set))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_rows_do_not_depend_on_their_neighbours(instruction_set: _kernels.InstructionSet) -> None:
    rng = np.random.default_rng(3)
    a = rng.standard_normal((130, 70)).astype(np.float32)
    b = rng.standard_normal((61, 70)).astype(np.float32)
    whole = multiply(a, b, instruction_set)
    np.testing.assert_array_equal(multiply(a[5:18].copy(), b, instruction_set), whole[5:18])


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (49, 400), (400, 200), (200, 800)])
def test_leading_zeros_are_left_out_and_change_nothing(
    n: int, k: int, instruction_set: _kernels.InstructionSet
) -> None:
    """Upper triangles: panels that begin anywhere in a depth block, and panels of zeros alone."""
    rng = np.random.default_rng(4)
    a = rng.integers(-50, 50, (113, k)).astype(np.float32)
    full = rng.integers(-50, 50, (n, k)).astype(np.float32)
    flat = np.repeat(np.triu(full)[::8], 8, axis=0)[:n]
    for b in (np.triu(full), np.triu(full, 2), flat, np.zeros_like(full), -np.zeros_like(full)):
        np.testing.assert_array_equal(
            multiply(a, b, instruction_set), a.astype(int) @ b.astype(int).T
        )


def test_no_terms_give_zero_and_no_rows_give_nothing(
    instruction_set: _kernels.InstructionSet,
) -> None:
    empty = np.empty((3, 0), np.float32)
    np.testing.assert_array_equal(multiply(empty, empty, instruction_set), np.zeros((3, 3)))
    assert (
        multiply(np.empty((0, 4), np.float32), np.ones((2, 4), np.float32), instruction_set).size
        == 0
    )
