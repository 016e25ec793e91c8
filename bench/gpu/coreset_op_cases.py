"""The kernel table's case of the greedy coreset. See op_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import kernel_costs as costs
import numpy as np
from gpu_device import Device
from numpy.typing import NDArray
from op_cases import TINY_ERROR, OpCase, host, triton_function
from ops.feature_cases import queries_and_bank

TRITON_CORESET = "mmad_fast.ops.k_center_greedy.triton_kernel"
NUM_CHECKED_STEPS = 12
PART = 8192


def coreset_case(name: str, size: tuple[int, int, int], dtype: str, device: Device) -> OpCase:
    """n rows that cover all others; rows held in `dtype`. The error is `selection_shortfall`."""
    import torch

    num_rows, num_samples, num_channels = size
    rows = device.tensor(queries_and_bank(1, num_rows, num_channels)[1]).to(getattr(torch, dtype))
    exact = host(rows.float())
    case = OpCase(
        "k_center_greedy",
        {"rows": name, "N": num_rows, "n": num_samples, "C": num_channels},
        costs.k_center_greedy(num_rows, num_samples, num_channels, precision=dtype),
        lambda selected: selection_shortfall(exact, host(selected), num_samples),
        TINY_ERROR,
        dtype=dtype,
    )

    def triton() -> Callable[[], Any]:
        function = triton_function(TRITON_CORESET, "k_center_greedy")
        return lambda: function(rows, num_samples)

    case.offer("triton", triton)
    case.baselines["torch, norm of differences"] = lambda: published_selection(rows, num_samples)
    case.baselines["torch, matrix product"] = lambda: expanded_selection(rows, num_samples)
    return case


def selection_shortfall(
    rows: NDArray[np.float32], selected: NDArray[np.int64], num_samples: int
) -> float:
    """How much nearer than the farthest row a row was when it was selected, at worst, relative to
    the farthest; 0 for an exact selection whatever its ties. In float64, of the first steps; of the
    others that there are num_samples different ones."""
    worst = float(selected[0] != 0 or len(np.unique(selected)) != num_samples)
    nearest = np.full(len(rows), np.inf)
    for last, chosen in pairwise(selected[:NUM_CHECKED_STEPS]):
        center = rows[last].astype(np.float64)
        for begin in range(0, len(rows), PART):
            part = rows[begin : begin + PART].astype(np.float64)
            distances = np.sqrt(((part - center) ** 2).sum(axis=1))
            nearest[begin : begin + PART] = np.minimum(nearest[begin : begin + PART], distances)
        farthest = nearest.max()
        if farthest > 0:
            worst = max(worst, float((farthest - nearest[chosen]) / farthest))
    return worst


def published_selection(rows: Any, num_samples: int) -> Any:
    """The published loop, but for its waiting for the device: norms of all differences, their
    minimum with those before, the largest. It runs in the rows' type (published: float16)."""
    import torch

    selected = torch.zeros(num_samples, dtype=torch.int64, device=rows.device)
    nearest = torch.full((len(rows),), torch.inf, dtype=rows.dtype, device=rows.device)
    last = selected[:1]
    for step in range(1, num_samples):
        distances = torch.linalg.norm(rows - rows.index_select(0, last), dim=1)
        nearest = torch.minimum(nearest, distances)
        last = nearest.argmax().view(1)
        selected[step : step + 1] = last
    return selected


def expanded_selection(rows: Any, num_samples: int) -> Any:
    """As one writes it to read the rows once per step: |x|^2 - 2 x.c by a product with a vector.
    Loses digits where a row is near the selected one."""
    import torch

    selected = torch.zeros(num_samples, dtype=torch.int64, device=rows.device)
    squares = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    for begin in range(0, len(rows), PART):
        squares[begin : begin + PART] = rows[begin : begin + PART].float().square().sum(dim=1)
    nearest = torch.full_like(squares, torch.inf)
    last = selected[:1]
    for step in range(1, num_samples):
        products = (rows @ rows.index_select(0, last)[0]).float()
        nearest = torch.minimum(nearest, squares + squares[last] - 2 * products)
        last = nearest.argmax().view(1)
        selected[step : step + 1] = last
    return selected
