"""What the ops' benchmarks are made of: a job on one input, and everybody who can do it.

Each `bench_<op>.py` beside has `PIECES`, `cases` (on the CPU, ours beside the libraries that do the
same) and, where there are GPU kernels, `gpu_cases`. bench/run_ops.py and bench/on_gpu.py time them;
test_ops_benchmark.py is for a look at one's own change.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from settings import read_toml

if TYPE_CHECKING:
    from gpu.device import Device

Result = Any
FOLDER = Path(__file__).parent
FLOAT_BYTES, INDEX_BYTES = 4, 8
OPERAND_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
DISTANCE_FLOP = 8
"""A squared distance of points: three differences, three squares, two sums."""
NUM_CHECKED = 200
TINY_ERROR = 1e-6


class RefusalError(Exception):
    """Why a contender is not asked for this case."""


class DisagreementError(Exception):
    """How a result differs from ours."""


@dataclass(frozen=True)
class Agreement:
    """How a result agrees with ours.

    Attributes:
        kind: In words that are the same in every case.
        detail: The case's numbers.
    """

    kind: str
    detail: str | None = None


@dataclass(frozen=True)
class Contender:
    """One implementation that can do the job.

    Attributes:
        name: As the tables call it.
        make: Returns the function that is timed; what one keeps between scans (a packed bank) is
            prepared here, what depends on the scan is not.
        is_ours: Ours, not a peer.
        parameter: Its best parameter here.
        part: What it does if it does only a part of the job: shown, but no peer to be compared
            with. Its result is not checked.
        note: What a reader of the row must know.
        max_runs: Fewer runs for the very slow.
    """

    name: str
    make: Callable[[], Callable[[], Result]]
    is_ours: bool = False
    parameter: str | None = None
    part: str | None = None
    note: str | None = None
    max_runs: int | None = None


@dataclass(frozen=True)
class Work:
    """What a call has to do at least: a multiply-add counts as 2 FLOP, each input is read from
    device memory once and each output written once.

    Attributes:
        matrix_flop: In products of matrices, which tensor cores can do.
        plain_flop: All other arithmetic.
        device_bytes: Traffic with the memory.
    """

    matrix_flop: float = 0.0
    plain_flop: float = 0.0
    device_bytes: float = 0.0

    @property
    def flop(self) -> float:
        return self.matrix_flop + self.plain_flop


@dataclass(frozen=True)
class Case:
    """One job on one input.

    Attributes:
        what: The op.
        shapes: Sizes by letter.
        contenders: Who can do it; ours first.
        data: What the input is.
        dtype: Of the operands.
        work: What it takes, for a row's rates.
        check: Says how a result agrees with ours; raises DisagreementError where it does not.
        error_of: Distance of a result from the truth, where one number says it.
        max_error: What ours may have.
    """

    what: str
    shapes: Mapping[str, Any]
    contenders: Sequence[Contender]
    data: str = ""
    dtype: str = "float32"
    work: Work = field(default_factory=Work)
    check: Callable[[Result], Agreement] | None = None
    error_of: Callable[[Result], float] = lambda result: float("nan")
    max_error: float = 0.0

    def agreement(self, result: Result) -> Agreement:
        """How a result agrees.

        Raises:
            DisagreementError: it does not.
        """
        if self.check is not None:
            return self.check(result)
        error = self.error_of(result)
        if not error <= self.max_error:
            raise DisagreementError(f"error {error:.3g} is above {self.max_error:.3g}")
        return Agreement("within the bound of the error", f"error {error:.0e}")


@dataclass(frozen=True)
class Sizes:
    """How large the inputs of a GPU are, see sizes.toml."""

    frames: Sequence[tuple[int, float]]
    num_groups: int
    group_size: int
    channels: int
    grid: int
    coverage: float
    token_grid: int
    layers: Mapping[str, Sequence[int]]
    banks: Mapping[str, tuple[int, int, int]]
    coresets: Mapping[str, tuple[int, int, int]]
    dtypes: Sequence[str]

    @classmethod
    def read(cls, name: str) -> Sizes:
        """ "full" or "quick": what the latter does not say is as in the former."""
        tables = read_toml(FOLDER / "sizes.toml")
        return cls(**{**tables["full"], **tables[name]})


CaseMaker = Callable[[], Sequence[Case]]
"""Makes cases when their turn comes: their inputs are large."""


def op_modules() -> dict[str, ModuleType]:
    """The benchmark of each op, by op."""
    stems = sorted(path.stem for path in FOLDER.glob("bench_*.py"))
    return {stem.removeprefix("bench_"): import_module(f"ops.{stem}") for stem in stems}


def gpu_case_makers(sizes: Sizes, device: Device) -> list[CaseMaker]:
    """The cases of all ops that have GPU kernels."""
    return [
        make
        for module in op_modules().values()
        if hasattr(module, "gpu_cases")
        for make in module.gpu_cases(sizes, device)
    ]


def is_asked_for(options: argparse.Namespace, piece: str) -> bool:
    return options.only in (None, piece)


def with_threads(num_threads: int) -> ModuleType:
    """torch, told its number of threads."""
    import torch

    torch.set_num_threads(num_threads)
    return torch


def host(value: Any) -> NDArray:
    """An array of the host from a tensor or an array."""
    return value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()


def public_backend(device: Device, name: str) -> str:
    """The backend that a public op is asked for: on the host only "cpu" is there."""
    return name if device.is_cuda else "cpu"


def ours_on(backend: str, make: Callable[[], Callable[[], Result]]) -> Contender:
    return Contender(backend, make, is_ours=True)


def baseline(name: str, function: Callable[[], Result]) -> Contender:
    """What one would write in torch; timed on a GPU whatever its error."""
    return Contender(f"torch, {name}", lambda: function)


def kernels_of(op: str) -> ModuleType:
    """The Triton kernels of an op."""
    return import_module(f"mmad_fast.ops.{op}.triton_kernel")


def checked_rows(num_rows: int, num_checked: int = NUM_CHECKED) -> NDArray[np.int64]:
    """Some rows, evenly spread, at which the truth is taken."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_checked, num_rows)).astype(np.int64))


def rounded(array: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """The array after a trip through the type."""
    import torch

    return torch.from_numpy(array).to(getattr(torch, dtype)).float().numpy()
