"""What the ops' benchmarks are made of: a job on one input, and everybody who can do it.

Each `bench_<op>.py` beside has `PIECES`, `cases` (on the CPU, ours beside the libraries that do the
same) and, where there are GPU kernels, `gpu_cases`. bench/run_ops.py and bench/on_gpu.py time them;
test_ops_benchmark.py is for a look at one's own change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
Make = Callable[[], Callable[[], Result]]
"""Returns the function that is timed. What one keeps between scans (a packed bank) is prepared
there, what depends on the scan is not."""
FOLDER = Path(__file__).parent
FLOAT_BYTES, INDEX_BYTES = 4, 8
OPERAND_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
DISTANCE_FLOP = 8
"""A squared distance of points: three differences, three squares, two sums."""
NUM_CHECKED = 200
TINY_ERROR = 1e-6
RELATIVE_TIE = 1e-5  # distances that differ by less are equal


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
        make: Prepares it.
        is_ours: Ours, not a peer.
        parameter: Its best parameter here.
        part: What it does if it does only a part of the job: shown, but no peer to be compared
            with. Its result is not checked.
        note: What a reader of the row must know.
        max_runs: Fewer runs for the very slow.
    """

    name: str
    make: Make
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
        same: What a row says of a result whose error is allowed.
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
    same: str = "within the bound of the error"

    @property
    def facts(self) -> dict[str, Any]:
        """What a row says of the input."""
        return {"shapes": dict(self.shapes), "dtype": self.dtype}

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
        return Agreement(self.same, f"error {error:.0e}")


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


def with_threads(num_threads: int) -> ModuleType:
    """torch, told its number of threads."""
    import torch

    torch.set_num_threads(num_threads)
    return torch


def host(value: Any) -> NDArray:
    """An array of the host from a tensor or an array."""
    return value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()


def parts_of(result: Result) -> list[NDArray]:
    """Copies of a result's arrays."""
    parts = result if isinstance(result, tuple | list) else (result,)
    return [host(part).copy() for part in parts]


def largest_difference(found: Sequence[NDArray], expected: Sequence[NDArray]) -> float:
    return max(
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) if a.size else 0.0
        for a, b in zip(found, expected, strict=True)
    )


def public_backend(device: Device, name: str) -> str:
    """The backend that a public op is asked for: on the host only "cpu" is there."""
    return name if device.is_cuda else "cpu"


def contenders(op: str, makes: Mapping[str, Make]) -> list[Contender]:
    """Contenders on the CPU by name, with what contenders.toml says of them; ours are "mmad-fast"
    and its variants."""
    said = read_toml(FOLDER / "contenders.toml").get(op, {})
    return [
        Contender(name, make, is_ours=name.startswith("mmad-fast"), **said.get(name, {}))
        for name, make in makes.items()
    ]


def ours(backend: str, function: Callable[[], Result]) -> Contender:
    """Our function on a GPU, which has nothing to prepare."""
    return Contender(backend, lambda: function, is_ours=True)


def triton(op: str, *arguments: Any, function: str | None = None) -> Contender:
    """The function of an op's Triton kernels that has the op's name, or another, on arguments."""

    def make() -> Callable[[], Result]:
        return partial(getattr(kernels_of(op), function or op), *arguments)

    return Contender("triton", make, is_ours=True)


def one(make: Callable[..., Case], *arguments: Any) -> CaseMaker:
    """Makes one case of the arguments."""
    return lambda: [make(*arguments)]


def baseline(name: str, function: Callable[[], Result]) -> Contender:
    """What one would write in torch; timed on a GPU whatever its error."""
    return Contender(f"torch, {name}", lambda: function)


def kernels_of(op: str) -> ModuleType:
    """The Triton kernels of an op."""
    return import_module(f"mmad_fast.ops.{op}.triton_kernel")


def checked_rows(num_rows: int, num_checked: int = NUM_CHECKED) -> NDArray[np.int64]:
    """Some rows, evenly spread, at which the truth is taken."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_checked, num_rows)).astype(np.int64))


def exact_distances(rows: NDArray[np.float32], row: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) float64 distances of rows (N, C) to one (C,), a part of the rows at a time."""
    exact = row.astype(np.float64)
    parts = np.array_split(rows, max(1, len(rows) // 8192))
    return np.concatenate(
        [np.sqrt(((part.astype(np.float64) - exact) ** 2).sum(axis=1)) for part in parts]
    )


def rounded(array: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """The array after a trip through the type."""
    import torch

    return torch.from_numpy(array).to(getattr(torch, dtype)).float().numpy()
