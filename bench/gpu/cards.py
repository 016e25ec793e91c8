"""The cards of the cost model: what their vendor prints, and where."""

from __future__ import annotations

from dataclasses import dataclass

from mmad_fast.gpu.architectures import ARCHITECTURES, Architecture

PRECISIONS = ("float32", "tf32", "float16")
"""Of the operands of matrix products; all accumulate in float32."""


@dataclass(frozen=True)
class Card:
    """One GPU by its data sheet: peaks, which no kernel reaches.

    Attributes:
        name: As sold.
        sm: Compute capability; its limits per block stand in mmad_fast.gpu.architectures.
        multiprocessors: Streaming multiprocessors that are switched on.
        float32_lanes: float32 units per multiprocessor, each a multiply-add per clock.
        clock_ghz: Boost clock.
        bandwidth_gbs: Device memory, GB/s.
        l2_mib: Second level cache.
        float32_tflops: On the CUDA cores.
        tf32_tflops: Tensor cores, dense.
        float16_tflops: Tensor cores, dense, float32 accumulate.
        source: The documents that print the figures; what is derived from them is named.
    """

    name: str
    sm: int
    multiprocessors: int
    float32_lanes: int
    clock_ghz: float
    bandwidth_gbs: float
    l2_mib: float
    float32_tflops: float
    tf32_tflops: float
    float16_tflops: float
    source: str

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.sm]

    def flop_per_s(self, precision: str) -> float:
        """Peak of matrix products with operands of that precision."""
        tflops = {
            "float32": self.float32_tflops,
            "tf32": self.tf32_tflops,
            "float16": self.float16_tflops,
        }
        return 1e12 * tflops[precision]

    @property
    def bytes_per_s(self) -> float:
        return 1e9 * self.bandwidth_gbs

    @property
    def clocks_per_s(self) -> float:
        return 1e9 * self.clock_ghz


CARDS: tuple[Card, ...] = (
    Card(
        *("Jetson AGX Orin 64GB", 87, 16, 128, 1.3, 204.8, 4.0, 5.3, 21.2, 42.5),
        "NVIDIA Jetson AGX Orin Series technical brief (2048 CUDA cores in 16 multiprocessors, "
        "1.3 GHz, 204.8 GB/s, 4 MB L2, 5.3 FP32 TFLOPS, 170 sparse INT8 TOPS). Derived: FP16 dense "
        "is a quarter of the sparse INT8 figure, TF32 half of FP16, as on GA100.",
    ),
    Card(
        *("RTX 3060", 86, 28, 128, 1.777, 360.0, 3.0, 12.7, 12.7, 25.5),
        "NVIDIA GeForce RTX 3060 12 GB product specifications (3584 CUDA cores, 1.777 GHz, 192 bit "
        "at 15 Gbit/s); NVIDIA Ampere GA102 GPU Architecture whitepaper for the rates per "
        "multiprocessor: FP16 with FP32 accumulate is 2 x FP32, TF32 is 1 x FP32. Derived: the "
        "products of both. The L2 size is what boards report; no document prints it.",
    ),
    Card(
        *("RTX 4090", 89, 128, 128, 2.52, 1008.0, 72.0, 82.6, 82.6, 165.2),
        "NVIDIA Ada GPU Architecture whitepaper, appendix A (GeForce RTX 4090).",
    ),
    Card(
        *("L4", 89, 58, 128, 2.04, 300.0, 48.0, 30.3, 60.0, 121.0),
        "NVIDIA L4 Tensor Core GPU data sheet (TF32 and FP16 are printed with sparsity, 120 and "
        "242: halved); NVIDIA L4 product brief (2.04 GHz boost, 7424 CUDA cores); NVIDIA Ada GPU "
        "Architecture whitepaper (AD104). At 72 W the boost clock does not last.",
    ),
    Card(
        *("A100 40GB SXM", 80, 108, 64, 1.41, 1555.0, 40.0, 19.5, 156.0, 312.0),
        "NVIDIA A100 Tensor Core GPU Architecture whitepaper; NVIDIA A100 data sheet.",
    ),
    Card(
        *("A100 80GB SXM", 80, 108, 64, 1.41, 2039.0, 40.0, 19.5, 156.0, 312.0),
        "NVIDIA A100 80GB data sheet; otherwise as A100 40GB.",
    ),
    Card(
        *("H100 SXM", 90, 132, 128, 1.83, 3350.0, 50.0, 67.0, 494.7, 989.4),
        "NVIDIA H100 Tensor Core GPU data sheet (3.35 TB/s, 67 FP32 TFLOPS; TF32 and FP16 printed "
        "with sparsity: halved); NVIDIA H100 Tensor Core GPU Architecture whitepaper (132 "
        "multiprocessors, 50 MB L2). The FP32 figure belongs to 1.98 GHz, the tensor figures to "
        "the 1.83 GHz given here.",
    ),
)

BY_NAME: dict[str, Card] = {card.name: card for card in CARDS}
