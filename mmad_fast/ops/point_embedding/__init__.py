"""One token per group of points: Point-MAE's mini-PointNet. The maths is in README.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import is_device_array, read_device_array
from mmad_fast.ops.point_embedding.backends import OP
from mmad_fast.ops.point_embedding.weights import TOKEN_CHANNELS, EmbedderWeights
from mmad_fast.validation import check_float_matrix

__all__ = ["OP", "TOKEN_CHANNELS", "EmbedderWeights", "point_embedding"]


def point_embedding(
    groups: NDArray[np.float32], embedder: EmbedderWeights, *, backend: str = "auto"
) -> NDArray[np.float32]:
    """(G, 384) float32: the token of every group.

    With the norms' arrays in `embedder` a token depends on all groups, by the statistics of their
    points; without them on its own group alone.

    Args:
        groups: (G, K, 3) float32, finite, K >= 1: points minus their group's centre, metres. On a
            CUDA device the tokens are there, too, and contents are not checked.
        embedder: The weights.
        backend: "auto", or one of the names that `OP` knows.

    Raises:
        InvalidInputError: groups are no finite (G, K, 3) float array with a point per group;
            embedder is no EmbedderWeights; activations beyond the range of float32 (not looked at
            on a device). On a device: other than float32, or not C-contiguous.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: Point-MAE (Pang et al., 2022), section 3.1; method facts 3.1. The published code stores
        the activations of all points; README.md has the algebra that avoids it.
    """
    if is_device_array(groups):
        return _on_device(groups, embedder, backend)
    implementation = OP.resolve(backend)
    _check_embedder(embedder)
    if not isinstance(groups, np.ndarray):
        raise InvalidInputError(f"groups is a {type(groups).__name__}; it must be a NumPy array")
    shape = groups.shape
    _check_shape(shape)
    points = check_float_matrix(groups.reshape(-1, 3), "groups", num_columns=3)
    if shape[0] == 0:
        return np.empty((0, TOKEN_CHANNELS), np.float32)
    tokens = implementation.function(points.reshape(shape), embedder)
    if tokens is None or not np.isfinite(tokens).all():
        raise InvalidInputError(
            "the embedder's activations may leave the range of float32: check the scale of groups "
            f"(largest magnitude {np.abs(points).max():.3g}) and of the weights"
        )
    return tokens


def _on_device(groups: Any, embedder: EmbedderWeights, backend: str) -> Any:
    implementation = OP.resolve(backend, device="cuda")
    _check_embedder(embedder)
    array = read_device_array(groups, "groups", shape=(None, None, None))
    _check_shape(array.shape)
    return implementation.function(array, embedder)


def _check_embedder(embedder: EmbedderWeights) -> None:
    if not isinstance(embedder, EmbedderWeights):
        raise InvalidInputError(
            f"embedder is a {type(embedder).__name__}; it must be an EmbedderWeights"
        )


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[2] != 3 or shape[1] == 0:
        raise InvalidInputError(
            f"groups have shape {shape}; they must be (G, K, 3) with at least 1 point per group"
        )
