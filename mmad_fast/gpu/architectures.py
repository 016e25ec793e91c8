"""The GPU architectures that the kernels are written for, and what a block may use on each."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
REGISTERS_PER_SM = 65536
WARP_SIZE = 32
REGISTERS_PER_ALLOCATION = 256
"""A warp's registers are rounded up to a multiple of this."""
PARTITIONS_PER_SM = 4
"""Each has its own quarter of the registers and runs its own warps."""


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
        shared_granularity: A block's shared memory is rounded up to a multiple of this.
        shared_reserved: Of which the system keeps this many bytes of every block.
    """

    sm: int
    chips: str
    shared_per_sm_kib: int
    shared_per_block_kib: int
    warps_per_sm: int
    blocks_per_sm: int
    has_triton_tensor_cores: bool = True
    has_clusters: bool = False
    shared_granularity: int = 128
    shared_reserved: int = KIB

    @property
    def shared_per_block(self) -> int:
        """Bytes."""
        return self.shared_per_block_kib * KIB

    def resident_blocks(self, *, num_warps: int, registers: int, shared_bytes: int) -> int:
        """How many blocks of a kernel a multiprocessor runs at a time; 0: it cannot run.

        Args:
            num_warps: Of a block.
            registers: Of a thread.
            shared_bytes: Of a block, static and dynamic.
        """
        if shared_bytes > self.shared_per_block:
            return 0
        per_warp = _round_up(registers * WARP_SIZE, REGISTERS_PER_ALLOCATION)
        if per_warp * _round_up(num_warps, PARTITIONS_PER_SM) > REGISTERS_PER_SM:
            return 0
        warps = REGISTERS_PER_SM // PARTITIONS_PER_SM // per_warp * PARTITIONS_PER_SM
        shared = _round_up(shared_bytes + self.shared_reserved, self.shared_granularity)
        limits = [self.blocks_per_sm, self.warps_per_sm // num_warps, warps // num_warps]
        if shared:
            limits.append(self.shared_per_sm_kib * KIB // shared)
        return min(limits)

    def occupancy(self, *, num_warps: int, registers: int, shared_bytes: int) -> float:
        """The part of a multiprocessor's warps that a kernel keeps resident: 0 to 1."""
        blocks = self.resident_blocks(
            num_warps=num_warps, registers=registers, shared_bytes=shared_bytes
        )
        return blocks * num_warps / self.warps_per_sm


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


ARCHITECTURES: dict[int, Architecture] = {
    architecture.sm: architecture
    for architecture in (
        Architecture(
            *(75, "T4, RTX 20", 64, 64, 32, 16),
            has_triton_tensor_cores=False,
            shared_granularity=256,
            shared_reserved=0,
        ),
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
