"""Reads official checkpoints and checks them against a network, key by key and shape by shape."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmad_fast.errors import WeightsError

# Where the weights lie in nested checkpoints: training runs (DINO keeps "teacher" beside
# "student"), and Point-MAE's release ("base_model").
CONTAINERS = ("state_dict", "teacher", "base_model", "model")
PREFIXES = ("module.", "base_model.", "backbone.", "MAE_encoder.")
MAX_FAULTS_NAMED = 8

# What torch.load raises on damaged or foreign files, by the place where it notices.
UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under their official names.

    Nested dictionaries are opened ("state_dict", "teacher", "base_model", "model") and prefixes
    ("module.", "base_model.", "backbone.", "MAE_encoder.") are taken off.

    Args:
        path: A .safetensors file, or a file of `torch.save`, which is read without running code
            from it (weights_only).

    Raises:
        WeightsError: the file cannot be read, holds no tensors, or two keys become one when the
            prefixes are taken off.
    """
    content = _read_content(path)
    state: dict[str, Tensor] = {}
    for key, tensor in _find_tensors(content, path).items():
        name = _without_prefixes(key)
        if name in state:
            raise WeightsError(
                f"{path}: two keys stand for {name!r} when their prefixes are taken off (one is "
                f"{key!r}); the file holds more than one network, give the official one"
            )
        state[name] = tensor
    return state


def read_networks(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint of several networks, by name of the network and official name.

    Args:
        path: See `read_checkpoint`.

    Raises:
        WeightsError: the file cannot be read, or holds no dictionaries of tensors.
    """
    content = _read_content(path)
    parts = content.items() if isinstance(content, Mapping) else ()
    networks = {
        str(name): {_without_prefixes(str(key)): tensor for key, tensor in part.items()}
        for name, part in parts
        if isinstance(part, Mapping) and all(isinstance(one, Tensor) for one in part.values())
    }
    if not networks:
        raise WeightsError(
            f"{path} holds no networks: dictionaries of tensors by the networks' names are needed"
        )
    return networks


def fit_to_network(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    *,
    is_ignored: Callable[[str], bool],
    network: str,
    path: Path,
    advice: str = (
        "Give the official file of this network (`mmad-fast weights` lists them), or 'auto', or "
        "'random'"
    ),
) -> dict[str, Tensor]:
    """The tensors that the network needs; floating point ones as float32.

    Args:
        state: Tensors by official name.
        expected: Shape by name of every tensor that the network needs.
        is_ignored: Says of a further key whether it is known to be of no use (heads, a decoder,
            blocks beyond the cut).
        network: What to call the network in the message.
        path: The checkpoint, for the message.
        advice: What to do, for the message.

    Raises:
        WeightsError: a key is missing, has another shape, has a value that is not finite, or is
            neither needed nor known; the message names it.
    """
    faults = []
    for key, shape in expected.items():
        if key not in state:
            faults.append(f"key {key!r} is missing (expected shape {shape})")
        elif tuple(state[key].shape) != shape:
            faults.append(f"key {key!r} has shape {tuple(state[key].shape)}, expected {shape}")
        elif not bool(torch.isfinite(state[key]).all()):
            faults.append(f"key {key!r} has values that are not finite")
    unknown = [key for key in state if key not in expected and not is_ignored(key)]
    faults += [f"key {key!r} {tuple(state[key].shape)} is unknown" for key in unknown]
    if faults:
        named = "; ".join(faults[:MAX_FAULTS_NAMED])
        more = len(faults) - MAX_FAULTS_NAMED
        rest = f"; and {more} more" if more > 0 else ""
        raise WeightsError(f"{path} does not fit {network}: {named}{rest}. {advice}")
    return {
        key: state[key].float() if state[key].is_floating_point() else state[key]
        for key in expected
    }


def is_block_beyond(key: str, pattern: str, num_blocks: int, depth: int) -> bool:
    """Whether the key belongs to a block that the cut network does not have.

    Args:
        key: Official name.
        pattern: Regular expression whose first group is the block's number.
        num_blocks: Blocks that the cut network has.
        depth: Blocks that the published network has.
    """
    match = re.match(pattern, key)
    return match is not None and num_blocks <= int(match.group(1)) < depth


def _read_content(path: Path) -> Any:
    """What a file holds."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path, device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(_unreadable_message(path, "safetensors", error)) from error
    try:
        with torch.serialization.safe_globals(_numpy_scalar_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(_unreadable_message(path, "torch", error)) from error


def _find_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        inner = [content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    found = (
        f"a dictionary with the keys {', '.join(map(str, list(content)[:8])) or '(none)'}"
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )
    raise WeightsError(
        f"{path} holds no weights: found {found}; a state dictionary of tensors is needed, at the "
        f"top or under {', '.join(CONTAINERS)}"
    )


def _without_prefixes(key: str) -> str:
    for prefix in PREFIXES:
        while key.startswith(prefix):
            key = key[len(prefix) :]
    return key


def _numpy_scalar_globals() -> list[Any]:
    """What a pickled NumPy number needs: Point-MAE's release stores its metrics as such.

    Plain data, no code; the constructor goes by its old and its new module name.
    """
    scalar = np.float64(0).__reduce__()[0]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.float32)),
        type(np.dtype(np.int64)),
    ]


def _unreadable_message(path: Path, kind: str, error: BaseException) -> str:
    reason = (str(error).splitlines() or [""])[0][:200]
    return (
        f"{path} cannot be read as a {kind} checkpoint ({type(error).__name__}: {reason}); the "
        "file is damaged, cut short or of another kind. Get it again, or give another path, 'auto' "
        "or 'random'"
    )
