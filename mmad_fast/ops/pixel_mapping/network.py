"""The crossmodal mapping network as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.validation import check_float_matrix, check_float_vector

if TYPE_CHECKING:
    from mmad_fast import _kernels

ROTATED_PREFIX = "rotated."
"""Before the names of the tensors that hold a rotated layer."""


@dataclass(frozen=True, eq=False)
class PackedMappingNetwork:
    """A mapping network for the cpu backend alone: `MappingNetwork.packed` without the plain
    weights, which cost as much memory again.

    Attributes:
        in_channels: Width of the source features.
        out_channels: Width of the target features.
        kernel_network: What the compiled kernel reads.
    """

    in_channels: int
    out_channels: int
    kernel_network: _kernels.PackedNetwork


class RotatedLayer(NamedTuple):
    """A network's last layer in an orthogonal basis in which its weight is upper triangular.

    Attributes:
        rotation: (out, out) float32, takes targets there.
        weight: (out, in) float32, the layer's followed by the rotation: 0 below the diagonal.
        bias: (out,) float32, likewise.
    """

    rotation: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MappingNetwork:
    """Two or more Linear layers, y = W x + b, with an exact (erf) GELU between them.

    Attributes:
        weights: Per layer (out, in) float32, finite. Do not change them after the first use.
        biases: Per layer (out,) float32, finite.
        stored_rotation: The last layer as `rotated` gives it, where it was computed before.

    Raises:
        InvalidInputError: fewer than two layers, not one bias per weight, layers that do not fit
            one another, a stored rotation of other shapes, or values that are not finite.

    Source: FeatureProjectionMLP (3 layers) and FeatureProjectionMLP_big (7 layers) of the CFM
        release; method facts 6.1.
    """

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    stored_rotation: RotatedLayer | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(arrays, (tuple, list)) for arrays in (self.weights, self.biases)):
            raise InvalidInputError("weights and biases must be tuples, an array for each layer")
        if len(self.weights) < 2 or len(self.weights) != len(self.biases):
            raise InvalidInputError(
                f"the network has {len(self.weights)} weights and {len(self.biases)} biases; it "
                "must have at least 2 layers, each with a weight and a bias"
            )
        weights: list[NDArray[np.float32]] = []
        biases: list[NDArray[np.float32]] = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            checked = check_float_matrix(weight, f"weight {layer}", min_rows=1)
            if checked.shape[1] == 0:
                raise InvalidInputError(
                    f"weight {layer} has shape {checked.shape}; it needs inputs"
                )
            if weights and checked.shape[1] != len(weights[-1]):
                raise InvalidInputError(
                    f"weight {layer} has shape {checked.shape}, after a layer of shape "
                    f"{weights[-1].shape}; its second axis must be {len(weights[-1])}"
                )
            weights.append(checked)
            biases.append(check_float_vector(bias, f"bias {layer}", length=len(checked)))
        object.__setattr__(self, "weights", tuple(weights))
        object.__setattr__(self, "biases", tuple(biases))
        if self.stored_rotation is not None:
            _check_rotation(self.stored_rotation, weights[-1].shape)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray], prefix: str) -> MappingNetwork:
        """The network whose tensors have the official key names.

        Args:
            tensors: Holds `{prefix}input.weight`, `{prefix}input.bias`, the same for `projection`
                or for `projection_a`, `projection_b`, ..., and for `output`; may hold what
                `rotated_tensors` gives, and others.
            prefix: Put before every key; "" for a state dict as published.

        Raises:
            InvalidInputError: a key is missing, or the shapes do not fit.
        """
        inner = sorted(
            {
                key[len(prefix) :].rpartition(".")[0]
                for key in tensors
                if key.startswith(f"{prefix}projection")
            }
        )
        layers = ["input", *inner, "output"]
        wanted = [f"{prefix}{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
        rotated = [f"{ROTATED_PREFIX}{prefix}{key}" for key in RotatedLayer._fields]
        is_rotated = rotated[0] in tensors
        missing = [key for key in (*wanted, *rotated * is_rotated) if key not in tensors]
        if missing:
            raise InvalidInputError(
                f"the mapping network lacks {', '.join(missing)}; there are "
                f"{', '.join(sorted(tensors)) or 'no tensors'}: check the prefix {prefix!r}"
            )
        return cls(
            tuple(tensors[f"{prefix}{layer}.weight"] for layer in layers),
            tuple(tensors[f"{prefix}{layer}.bias"] for layer in layers),
            RotatedLayer(*(tensors[key] for key in rotated)) if is_rotated else None,
        )

    def rotated_tensors(self, prefix: str) -> dict[str, NDArray[np.float32]]:
        """`rotated` by the names under which `from_tensors` finds it."""
        fields = self.rotated._asdict().items()
        return {f"{ROTATED_PREFIX}{prefix}{key}": array for key, array in fields}

    @property
    def in_channels(self) -> int:
        return int(self.weights[0].shape[1])

    @property
    def out_channels(self) -> int:
        return int(self.weights[-1].shape[0])

    @cached_property
    def rotated(self) -> RotatedLayer:
        """The last layer as the compiled and GPU kernels read it: as stored, else computed."""
        return self.stored_rotation or rotated_layer(self.weights[-1], self.biases[-1])

    @cached_property
    def packed(self) -> PackedMappingNetwork:
        """The network as the cpu backend reads it, packed at the first use. Two threads that meet
        there pack twice, with equal content."""
        from mmad_fast import _kernels

        rotation, weight, bias = self.rotated
        inner = zip(self.weights[:-1], self.biases[:-1], strict=True)
        kernel_network = _kernels.PackedNetwork([*inner, (weight, bias)], rotation)
        return PackedMappingNetwork(self.in_channels, self.out_channels, kernel_network)

    @cached_property
    def on_devices(self) -> dict[int, Any]:
        """What the GPU backend made of the network, by CUDA device."""
        return {}

    @property
    def kernel_network(self) -> _kernels.PackedNetwork:
        return self.packed.kernel_network


def rotated_layer(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> RotatedLayer:
    """The layer of weight (out, in) and bias (out,), rotated; rounded once from float64."""
    basis, triangle = np.linalg.qr(weight.astype(np.float64), mode="complete")
    with np.errstate(over="ignore"):  # found later: psi is not finite
        rotated = [array.astype(np.float32) for array in (triangle, basis.T @ bias)]
    return RotatedLayer(np.ascontiguousarray(basis.T, np.float32), rotated[0], rotated[1])


def _check_rotation(rotated: RotatedLayer, layer_shape: tuple[int, ...]) -> None:
    """Raises InvalidInputError if it does not belong to a layer of that shape (out, in)."""
    out, inputs = layer_shape
    wanted = {"rotation": (out, out), "weight": (out, inputs), "bias": (out,)}
    for name, array in rotated._asdict().items():
        if array.shape != wanted[name] or array.dtype != np.float32 or not np.isfinite(array).all():
            raise InvalidInputError(
                f"the rotated layer's {name} is {array.dtype} of shape {array.shape}; it must be "
                f"float32 of shape {wanted[name]}, finite"
            )
