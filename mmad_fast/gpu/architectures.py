"""The GPU architectures that the kernels are written for, and what a block may use on each."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
REGISTERS_PER_SM = 65536
WARP_SIZE = 32


@dataclass(frozen=True)
class Architecture:
    """The limits of one compute capability.

    Attributes:
        sm: Compute capability as nvcc writes it: 89 is 8.9.
        chips: Examples of what has it.
        shared_per_sm_kib: Shared memory of one multiprocessor.
        shared_per_block_kib: The most that one block may ask for.
        warps_per_sm: Resident warps.
        blocks_per_sm: Resident blocks.
        has_triton_tensor_cores: Triton's dot products run on tensor cores. Its compiler dropped
            those of Turing: there they are fused multiply-adds.
        has_clusters: Blocks can form clusters that read each other's shared memory.
    """

    sm: int
    chips: str
    shared_per_sm_kib: int
    shared_per_block_kib: int
    warps_per_sm: int
    blocks_per_sm: int
    has_triton_tensor_cores: bool = True
    has_clusters: bool = False

    @property
    def shared_per_block(self) -> int:
        """Bytes."""
        return self.shared_per_block_kib * KIB


ARCHITECTURES: dict[int, Architecture] = {
    architecture.sm: architecture
    for architecture in (
        Architecture(75, "T4, RTX 20", 64, 64, 32, 16, has_triton_tensor_cores=False),
        Architecture(80, "A100", 164, 163, 64, 32),
        Architecture(86, "RTX 30, A10, A40", 100, 99, 48, 16),
        Architecture(87, "Jetson Orin", 164, 163, 48, 16),
        Architecture(89, "RTX 40, L4, L40", 100, 99, 48, 24),
        Architecture(90, "H100, H200", 228, 227, 64, 32, has_clusters=True),
        Architecture(100, "B200", 228, 227, 64, 32, has_clusters=True),
        Architecture(120, "RTX 50", 100, 99, 48, 24, has_clusters=True),
    )
}
"""By compute capability. Source: CUDA C++ programming guide, technical specifications per compute
capability."""
