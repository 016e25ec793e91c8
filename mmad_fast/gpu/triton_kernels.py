"""What is known of a Triton kernel before it runs: its arguments, and its tile sizes per chip.

Imports no triton: the modules named here do. Each has a tuple KERNELS of `TritonKernel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TRITON_MODULES: tuple[str, ...] = (
    "mmad_fast.ops.inverse_distance_interpolation.triton_kernel",
    "mmad_fast.ops.k_center_greedy.triton_kernel",
    "mmad_fast.ops.nearest_neighbor_scoring.triton_kernel",
    "mmad_fast.ops.pixel_mapping.triton_kernel",
)


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel is compiled.

    Attributes:
        num_warps: Warps per program.
        num_stages: Depth of the pipeline of loads.
        constants: Tile sizes by the name of the kernel's constexpr.
    """

    num_warps: int
    num_stages: int
    constants: Mapping[str, int]

    @property
    def label(self) -> str:
        """What tells it apart in names of files and tests, e.g. "block_q64-block_m32-w4-s3"."""
        sizes = [
            f"{name.lower()}{'_' if name[-1].isdigit() else ''}{value}"
            for name, value in self.constants.items()
        ]
        return "-".join([*sizes, f"w{self.num_warps}", f"s{self.num_stages}"])


@dataclass(frozen=True)
class TritonKernel:
    """One specialisation of a Triton function.

    Attributes:
        name: "<op>.<what>.<types>", unique among all kernels.
        function: The function's name in its module.
        arguments: Triton's type by argument, in the function's order, without the constexprs:
            "*fp32", "i32", ...; ":16" behind a type says that the pointer is aligned to 16 bytes or
            that the integer is divisible by 16.
        configs: By compute capability, best guess first; DEFAULT_SM serves those not listed. The
            first is what runs: nothing is tuned while scans wait. bench/on_gpu.py times the others.
        constants: The other constexprs of this specialisation.
        uses_tensor_cores: Its dot products must run on tensor cores where Triton can.
        enable_fp_fusion: Triton's option of that name: False forbids to fuse a product and a sum
            into one rounding. None leaves it to Triton, which fuses.
    """

    name: str
    function: str
    arguments: Mapping[str, str]
    configs: Mapping[int, tuple[LaunchConfig, ...]]
    constants: Mapping[str, object] = field(default_factory=dict)
    uses_tensor_cores: bool = False
    enable_fp_fusion: bool | None = None

    def configs_for(self, sm: int) -> tuple[LaunchConfig, ...]:
        """The configurations of a compute capability, the one that runs first."""
        return self.configs.get(sm, self.configs[DEFAULT_SM])

    def launch_options(self, sm: int) -> dict[str, Any]:
        """What a launch passes behind the arguments: constexprs and compiler options."""
        config = self.configs_for(sm)[0]
        return {**self.constants, **config.constants, **self.compiler_options(config)}

    def compiler_options(self, config: LaunchConfig) -> dict[str, Any]:
        """Triton's options for one of the configurations."""
        options: dict[str, Any] = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        if self.enable_fp_fusion is not None:
            options["enable_fp_fusion"] = self.enable_fp_fusion
        return options


def compute_capability(tensor: torch.Tensor) -> int:
    """Of the device that holds the tensor, as nvcc writes it. INTERPRETED_SM on a CPU."""
    import torch

    if not tensor.is_cuda:
        return INTERPRETED_SM
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


DEFAULT_SM = 0
INTERPRETED_SM = 80
"""Whose configurations run where kernels are interpreted."""
