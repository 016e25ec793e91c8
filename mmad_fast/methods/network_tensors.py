"""Trained networks as the tensors of an artifact, and back. Fit half."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def to_tensors(network: nn.Module, prefix: str) -> dict[str, NDArray]:
    """The network's weights, named prefix + key; counters are left out."""
    return {
        prefix + key: tensor.detach().to(torch.float32).contiguous().cpu().numpy().copy()
        for key, tensor in network.state_dict().items()
        if tensor.is_floating_point()
    }


def load_tensors(network: nn.Module, tensors: Mapping[str, NDArray], prefix: str) -> None:
    """Undoes `to_tensors`.

    Raises:
        RuntimeError: a tensor is missing or has another shape.
    """
    state = {
        key.removeprefix(prefix): torch.from_numpy(np.array(tensor, np.float32))
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    counters = {
        key: tensor
        for key, tensor in network.state_dict().items()
        if not tensor.is_floating_point()
    }
    network.load_state_dict({**counters, **state})
