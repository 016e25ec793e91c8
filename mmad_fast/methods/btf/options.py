"""Options of BTF. Both halves read them; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.branches.cnn_pyramid.options import CnnPyramidOptions
from mmad_fast.methods.branches.fpfh.options import FpfhOptions
from mmad_fast.methods.memory_bank.options import BankOptions
from mmad_fast.methods.options import constant, option, option_default

FEATURES = ("rgb", "fpfh")
"""The parts of a patch, in the order in which they stand side by side."""

BANK = "patches"
"""Name of the memory bank."""

PATCH_GRID = 28
"""Side of the grid of patches."""


@dataclass(frozen=True)
class BtfOptions(BankOptions, FpfhOptions, CnnPyramidOptions):
    """What a BTF detector is fitted with.

    Attributes:
        rgb_backbone: Both have the same layers and other weights; the public code loads timm's.
        bank_dtype: Of patches and bank: "float32"; "float64" as published, which gives the same
            answer in more time and memory; "float16", which approximates and takes half the memory.
        coreset_fraction: A tenth, as published; a smaller bank is searched faster.
        features: The parts of a patch, of FEATURES in their order.
    """

    rgb_backbone: str = option(
        "wide-resnet50-2-timm", "Convolutional network of the RGB features.",
        choices=("wide-resnet50-2-timm", "wide-resnet50-2"), in_rows=True,
    )  # fmt: skip
    bank_dtype: str = option(
        "float32",
        "Of patches and bank: float64 is the published one, float16 approximates at half the "
        "memory.",
        choices=("float32", "float64", "float16"),
        in_rows=True,
    )
    coreset_fraction: float = option(
        0.1, "Share of the training scans' patches that the bank keeps.", above=0, maximum=1,
        in_rows=True,
    )  # fmt: skip
    features: tuple[str, ...] = constant(FEATURES)

    def __post_init__(self) -> None:
        super().__post_init__()
        in_order = tuple(part for part in FEATURES if part in self.features)
        if not in_order or in_order != self.features:
            raise InvalidInputError(
                f"features is {self.features!r}; it must be one or more of {', '.join(FEATURES)}, "
                "in this order"
            )

    @property
    def is_exact(self) -> bool:
        """The detector gives the published pipeline's answer, up to rounding."""
        own = ("coreset_fraction", "fpfh_neighbors") if self.reads_points else ("coreset_fraction",)
        is_reduced = any(getattr(self, n) < option_default(type(self), n) for n in own)
        return super().is_exact and self.bank_dtype != "float16" and not is_reduced

    def with_constants(self) -> BtfOptions:
        """Without a network there is no precision to choose: "fp32"."""
        options = super().with_constants()
        return options if self.reads_rgb else replace(options, precision="fp32")

    @property
    def reads_rgb(self) -> bool:
        """A patch has RGB features."""
        return "rgb" in self.features

    @property
    def reads_points(self) -> bool:
        """A patch has histograms of points."""
        return "fpfh" in self.features

    @property
    def patch_dtype(self) -> str:
        """Of the patches as they are compared."""
        return "float64" if self.bank_dtype == "float64" else "float32"
