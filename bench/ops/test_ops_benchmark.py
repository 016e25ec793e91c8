"""The ops alone, under pytest-benchmark, on the cases of bench/run_ops.py.

python -m pytest bench/ops --benchmark-only [--benchmark-autosave] [-k knn]

For a look at one's own change (--benchmark-compare); the rows that documents are made of come from
bench/run_ops.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import run_ops
from ops.case import op_modules

pytest.importorskip("pytest_benchmark", reason="pip install 'mmad-fast[bench]'")

PIECES = [
    pytest.param(op, piece, id=f"{op}-{piece}")
    for op, module in op_modules().items()
    for piece in module.PIECES
]


@pytest.mark.parametrize(("op", "piece"), PIECES)
def test_ours(benchmark: Any, op: str, piece: str) -> None:
    """The first case of a piece: ours is checked by those that the case has, and timed."""
    options = run_ops.parse_arguments(["--op", op, "--only", piece])
    case = next(iter(op_modules()[op].cases(options)))
    ours = next(contender for contender in case.contenders if contender.is_ours)
    case.agreement(benchmark(ours.make()))
