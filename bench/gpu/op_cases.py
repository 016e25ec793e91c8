"""What the kernel table times: each op at real sizes, on every GPU backend, beside torch's own way
to do the same, with the distance of each result from the float64 reference.

The truth of large inputs is taken at some rows only. A backend may be at most twice as far from it
as plain float32 code is, and a tiny absolute term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from gpu_device import Device
from kernel_costs import Work
from numpy.typing import NDArray
from ops.cases import Frame, depth_frame

from mmad_fast.errors import MmadFastError

NUM_CHECKED = 200
TINY_ERROR = 1e-6


@dataclass(frozen=True)
class Sizes:
    """How large the inputs are.

    Attributes:
        frames: (side of the depth frame, coverage) of the clouds.
        num_groups, group_size: G and K.
        channels: C of the interpolated features.
        grid, coverage: The depth frame whose pixels are mapped.
        token_grid: Side of the token grid.
        layers: Mapping networks by name, RGB to points.
        banks: (Q, M, C) by name.
        coresets: (N, n, C) by name: n rows are selected.
        dtypes: Of the operands of scoring and mapping.
    """

    frames: tuple[tuple[int, float], ...]
    num_groups: int
    group_size: int
    channels: int
    grid: int
    coverage: float
    token_grid: int
    layers: dict[str, tuple[int, ...]]
    banks: dict[str, tuple[int, int, int]]
    coresets: dict[str, tuple[int, int, int]]
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")


CFM_LAYERS = {
    "cfm, cfm-m, cfm-s": (768, 960, 960, 1152),
    "cfm-t": (768, 576, 576, 384),
}
M3DM_BANKS = {
    "M3DM points": (3136, 76_518, 1152),
    "M3DM RGB": (784, 7_651, 768),
    "M3DM fusion": (3136, 7_651, 1920),
}
# The projected rows of 244 scans; so many steps that a call lasts long enough to be timed.
M3DM_CORESETS = {"M3DM points": (765_184, 256, 334), "M3DM RGB": (191_296, 512, 300)}
FULL = Sizes(
    frames=((134, 0.28), (224, 0.248), (224, 1.3), (845, 0.28)),  # about 5k, 12k, 47k, 200k points
    num_groups=1024,
    group_size=128,
    channels=1152,
    grid=224,
    coverage=0.248,  # pooling widens it to 14,049 pixels
    token_grid=28,
    layers=CFM_LAYERS,
    banks=M3DM_BANKS,
    coresets=M3DM_CORESETS,
)
QUICK = Sizes(
    frames=((224, 0.248), (224, 1.3)),
    num_groups=1024,
    group_size=128,
    channels=1152,
    grid=224,
    coverage=0.248,
    token_grid=28,
    layers=CFM_LAYERS,
    banks={name: M3DM_BANKS[name] for name in ("M3DM points", "M3DM RGB")},
    coresets={"M3DM RGB": M3DM_CORESETS["M3DM RGB"]},
    dtypes=("float32", "float16"),
)


@dataclass
class OpCase:
    """One op on one input.

    Attributes:
        what: The op.
        shapes: Of its input.
        work: What a call has to do.
        error_of: Distance of a result from the truth.
        max_error: What a backend of ours may have.
        dtype: Of the operands.
        functions: By backend; a call queues work on the device and returns the result.
        baselines: Likewise, what one would write in torch; timed whatever their error.
        refusals: Why a backend cannot be called, by name.
    """

    what: str
    shapes: dict[str, Any]
    work: Work
    error_of: Callable[[Any], float]
    max_error: float
    dtype: str = "float32"
    functions: dict[str, Callable[[], Any]] = field(default_factory=dict)
    baselines: dict[str, Callable[[], Any]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def offer(self, backend: str, make: Callable[[], Callable[[], Any]]) -> None:
        """Adds a backend, or why there is none: it is not built, not written, or refuses."""
        try:
            self.functions[backend] = make()
        except (ImportError, AttributeError, MmadFastError) as error:
            self.refusals[backend] = f"{type(error).__name__}: {error}"


def host(value: Any) -> NDArray:
    """An array of the host from a tensor or an array."""
    return value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()


def public_backend(device: Device, name: str) -> str:
    """The backend that a public op is asked for: on the host only "cpu" is there."""
    return name if device.is_cuda else "cpu"


def triton_function(module: str, function: str) -> Callable[..., Any]:
    return getattr(import_module(module), function)


def checked_rows(num_rows: int, num_checked: int = NUM_CHECKED) -> NDArray[np.int64]:
    """Some rows, evenly spread, at which the truth is taken."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_checked, num_rows)).astype(np.int64))


def weight_matrix(
    indices: NDArray[np.int64], weights: NDArray, num_centers: int
) -> NDArray[np.float64]:
    """(N, G): each weight at its centre."""
    matrix = np.zeros((len(indices), num_centers))
    np.add.at(matrix, (np.arange(len(indices))[:, None], indices), weights.astype(np.float64))
    return matrix


def frames(sizes: Sizes) -> list[Frame]:
    return [depth_frame(side, coverage=coverage) for side, coverage in sizes.frames]
