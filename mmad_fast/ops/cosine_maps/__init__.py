"""Cosine maps: where restored feature maps differ in direction from those of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import is_device_array, read_device_array
from mmad_fast.ops.cosine_maps.backends import OP
from mmad_fast.ops.registry import device_of
from mmad_fast.validation import MAX_SIDE, check_integer

__all__ = ["MAX_SIGMA", "OP", "cosine_maps"]

MAX_SIGMA = 64.0
"""Pixels."""


def cosine_maps(
    targets: Sequence[NDArray[np.float32]],
    restored: Sequence[NDArray[np.float32]],
    *,
    size: int,
    sigma: float = 4.0,
    align_corners: bool = True,
    backend: str = "auto",
) -> NDArray[np.float32]:
    """(S, S) float32: per level one minus the cosine between the two maps' features of each pixel,
    upsampled and summed over the levels, then smoothed.

    A pixel whose features are all 0 in one of the maps has the distance 1. No upsampled map of a
    level is made: upsampling and smoothing are one matrix along each axis.

    Args:
        targets: Of each level (C, H, W) float32 (float64 is rounded), finite; C, H and W may differ
            from level to level, H and W are in 1..4096. On a CUDA device the result is there, too,
            and contents are not checked: what is not finite makes what it reaches NaN.
        restored: Maps of the same shapes, on the same device.
        size: S, in 1..4096.
        sigma: Of the Gaussian in pixels of the result, in 0..64: scipy.ndimage.gaussian_filter
            with its defaults (cut at 4 sigma, mirrored at the border). 0: not smoothed.
        align_corners: Of the bilinear upsampling, as torch's interpolate has it.
        backend: "auto", or one of the names that `OP` knows.

    Raises:
        InvalidInputError: no level, or not as many restored maps as targets; a map of another type
            or shape, empty or too large; NaN or infinite; size or sigma out of range. On a device:
            arrays of another type, not C-contiguous, or of another device.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: RD4AD (Deng and Li, 2022), equation 1 and section 3.4, with the constants of its code:
    levels are summed, align_corners=True, sigma = 4; so MMRD and TRD.
    """
    first = targets[0] if isinstance(targets, (list, tuple)) and targets else None
    implementation = OP.resolve(backend, device=device_of(first))
    size = check_integer(size, "size", minimum=1, maximum=MAX_SIDE)
    sigma = _check_sigma(sigma)
    _check_levels(targets, restored)
    read = _read_on_device if is_device_array(first) else _read_on_host
    pairs: list[tuple[Any, Any]] = read(targets, restored)
    for level, (target, other) in enumerate(pairs):
        _check_shapes(level, target.shape, other.shape)
    anomaly_map: NDArray[np.float32] = implementation.function(
        [target for target, _ in pairs],
        [other for _, other in pairs],
        size,
        sigma,
        bool(align_corners),
    )
    # One number that is not finite makes the whole map NaN; the features are not read again.
    if isinstance(anomaly_map, np.ndarray) and not np.isfinite(anomaly_map).all():
        _refuse_content(pairs)
    return anomaly_map


def _check_sigma(sigma: Any) -> float:
    is_number = isinstance(sigma, (int, float, np.integer, np.floating))
    if not is_number or isinstance(sigma, bool) or not 0 <= sigma <= MAX_SIGMA:
        raise InvalidInputError(f"sigma is {sigma!r}; it must be a number in 0..{MAX_SIGMA:g}")
    return float(sigma)


def _check_levels(targets: Any, restored: Any) -> None:
    for maps, name in ((targets, "targets"), (restored, "restored")):
        if not isinstance(maps, (list, tuple)) or not maps:
            raise InvalidInputError(
                f"{name} is {_what(maps)}; it must be a list of the maps (C, H, W) of each level"
            )
    if len(targets) != len(restored):
        raise InvalidInputError(
            f"there are {len(targets)} targets and {len(restored)} restored maps; every level "
            "needs one of each"
        )


def _what(maps: Any) -> str:
    return "empty" if isinstance(maps, (list, tuple)) else f"a {type(maps).__qualname__}"


def _read_on_host(targets: Any, restored: Any) -> list[tuple[Any, Any]]:
    return [
        (_read_map(target, f"targets[{level}]"), _read_map(other, f"restored[{level}]"))
        for level, (target, other) in enumerate(zip(targets, restored, strict=True))
    ]


def _read_map(array: Any, name: str) -> NDArray[np.float32]:
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise InvalidInputError(
            f"{name} is a {type(array).__module__}.{type(array).__qualname__}; it must be a NumPy "
            "array (a torch tensor: pass tensor.detach().cpu().numpy(); or move all maps to one "
            "CUDA device)"
        )
    if array.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InvalidInputError(
            f"{name} has dtype {array.dtype}; it must be float32 (or float64, which is rounded): "
            f"convert it with {name}.astype(np.float32)"
        )
    with np.errstate(over="ignore"):  # infinite then, and refused
        return np.ascontiguousarray(array, dtype=np.float32)


def _read_on_device(targets: Any, restored: Any) -> list[tuple[Any, Any]]:
    shape = (None, None, None)
    first = read_device_array(targets[0], "targets[0]", shape=shape)
    return [
        (
            read_device_array(target, f"targets[{level}]", shape=shape, like=first),
            read_device_array(other, f"restored[{level}]", shape=shape, like=first),
        )
        for level, (target, other) in enumerate(zip(targets, restored, strict=True))
    ]


def _check_shapes(level: int, target: tuple[int, ...], restored: tuple[int, ...]) -> None:
    if len(target) != 3 or 0 in target or max(target[1:]) > MAX_SIDE:
        raise InvalidInputError(
            f"targets[{level}] has shape {target}; it must be (C, H, W), not empty, with H and W "
            f"in 1..{MAX_SIDE}"
        )
    if restored != target:
        raise InvalidInputError(
            f"restored[{level}] has shape {restored} and targets[{level}] has {target}; they must "
            "be the same"
        )


def _refuse_content(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
    for level, pair in enumerate(pairs):
        for name, array in zip(("targets", "restored"), pair, strict=True):
            if not np.isfinite(array).all():
                raise InvalidInputError(
                    f"{name}[{level}] has {np.count_nonzero(~np.isfinite(array))} values that are "
                    "NaN or infinite; all must be finite: look at the network that made them"
                )
