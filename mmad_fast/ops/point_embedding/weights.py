"""The weights of Point-MAE's group embedder as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.validation import check_float_matrix

if TYPE_CHECKING:
    from mmad_fast import _kernels

TOKEN_CHANNELS = 384
SHAPES: dict[str, tuple[int, ...]] = {
    "first_weight": (128, 3),
    "first_bias": (128,),
    "wide_weight": (256, 128),
    "local_weight": (512, 128),
    "group_weight": (512, 256),
    "group_bias": (512,),
    "final_weight": (TOKEN_CHANNELS, 512),
    "final_bias": (TOKEN_CHANNELS,),
    "first_norm_weight": (128,),
    "first_norm_bias": (128,),
    "second_norm_weight": (512,),
    "second_norm_bias": (512,),
}
"""Shape of every array, the same for all embedders."""

NORM_NAMES = tuple(name for name in SHAPES if "_norm_" in name)


@dataclass(frozen=True, eq=False)
class EmbedderWeights:
    """The embedder's layers, composed as README.md says: one map per ReLU that cannot be moved.

    Do not change the arrays after the first use.

    Attributes:
        first_weight: (128, 3) float32, finite, as all others; a row per output.
        first_bias: (128,).
        wide_weight: (256, 128), whose maximum over a group describes the group.
        local_weight: (512, 128): what a point adds to the second hidden layer.
        group_weight: (512, 256): what its group adds.
        group_bias: (512,) of both together.
        final_weight: (384, 512).
        final_bias: (384,).
        first_norm_weight: (128,) of the BatchNorm after the first layer if it takes the statistics
            of the current cloud; None where frozen statistics are folded into the layers.
        first_norm_bias: (128,) or None.
        second_norm_weight: (512,) or None.
        second_norm_bias: (512,) or None.

    Raises:
        InvalidInputError: an array of another shape, or with values that are not finite; some of
            the norms' arrays and not all.
    """

    first_weight: NDArray[np.float32]
    first_bias: NDArray[np.float32]
    wide_weight: NDArray[np.float32]
    local_weight: NDArray[np.float32]
    group_weight: NDArray[np.float32]
    group_bias: NDArray[np.float32]
    final_weight: NDArray[np.float32]
    final_bias: NDArray[np.float32]
    first_norm_weight: NDArray[np.float32] | None = None
    first_norm_bias: NDArray[np.float32] | None = None
    second_norm_weight: NDArray[np.float32] | None = None
    second_norm_bias: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        given = [name for name in NORM_NAMES if getattr(self, name) is not None]
        if given and len(given) < len(NORM_NAMES):
            raise InvalidInputError(
                f"the embedder has {', '.join(given)}; give all of {', '.join(NORM_NAMES)} for the "
                "statistics of the current cloud, or none for frozen ones"
            )
        for name, shape in SHAPES.items():
            array = getattr(self, name)
            if name in NORM_NAMES and not given:
                continue
            given_shape = array.shape if isinstance(array, np.ndarray) else type(array).__name__
            if given_shape != shape:
                raise InvalidInputError(
                    f"the embedder's {name} has shape {given_shape}; it must be an array of shape "
                    f"{shape}"
                )
            matrix = check_float_matrix(array.reshape(shape[0], -1), name)
            object.__setattr__(self, name, matrix.reshape(shape))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray], prefix: str) -> EmbedderWeights:
        """The weights in tensors named `{prefix}{attribute}`; other tensors are left alone.

        Args:
            tensors: Arrays by name. Those of the norms are there together or not at all.
            prefix: Put before every name.

        Raises:
            InvalidInputError: an array is missing or does not fit.
        """
        found = {name: tensors[prefix + name] for name in SHAPES if prefix + name in tensors}
        missing = [prefix + name for name in SHAPES if name not in found and name not in NORM_NAMES]
        if missing:
            raise InvalidInputError(
                f"the embedder lacks {', '.join(missing)}; there are "
                f"{', '.join(sorted(tensors)) or 'no tensors'}: check the prefix {prefix!r}"
            )
        return cls(**found)

    def to_tensors(self, prefix: str) -> dict[str, NDArray[np.float32]]:
        """The arrays by the names that `from_tensors` reads."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return {prefix + name: array for name, array in arrays.items() if array is not None}

    @property
    def uses_cloud_statistics(self) -> bool:
        """Whether the BatchNorms take the statistics of the current cloud."""
        return self.first_norm_weight is not None

    @cached_property
    def kernel_embedder(self) -> _kernels.PackedEmbedder:
        """The weights as the compiled kernel reads them, packed at the first use. Two threads that
        meet there pack twice, with equal content."""
        from mmad_fast import _kernels

        return self.pack(_kernels.best_instruction_set())

    @cached_property
    def on_devices(self) -> dict[int, Any]:
        """What the GPU backend made of the weights, by CUDA device."""
        return {}

    def pack(self, instruction_set: _kernels.InstructionSet) -> _kernels.PackedEmbedder:
        """The weights packed for an instruction set of the compiled kernels."""
        from mmad_fast import _kernels

        empty = np.empty(0, np.float32)
        arrays = [getattr(self, name) for name in SHAPES]
        return _kernels.PackedEmbedder(
            [empty if array is None else array for array in arrays], instruction_set
        )
