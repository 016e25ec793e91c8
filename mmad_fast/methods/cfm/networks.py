"""The mapping networks of CFM in torch, with the key names of the published checkpoints."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


class FeatureProjectionMLP(nn.Module):
    """Maps features of one modality to the other's: Linear layers with GELU between them.

    Three layers: in -> h -> h -> out with h = (in + out) // 2. Keys: input, projection, output.

    Source: CFM section 4 and supplementary B; method facts 6.1.
    """

    projections: tuple[str, ...] = ("projection",)

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        hidden = (in_features + out_features) // 2
        self.input = nn.Linear(in_features, hidden)
        for name in self.projections:
            self.add_module(name, nn.Linear(hidden, hidden))
        self.output = nn.Linear(hidden, out_features)
        self.act_fcn = nn.GELU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., out_features) predicted features, from features (..., in_features)."""
        hidden = self.act_fcn(self.input(features))
        for name in self.projections:
            hidden = self.act_fcn(self.get_submodule(name)(hidden))
        return self.output(hidden)


class FeatureProjectionMLPBig(FeatureProjectionMLP):
    """The same with five hidden layers, projection_a to projection_e.

    Source: the public CFM code; method facts 6.1 (said to be the network of the Eyecandies tables).
    """

    projections = tuple(f"projection_{letter}" for letter in "abcde")


MAPPING_NETWORKS: dict[str, type[FeatureProjectionMLP]] = {
    "published": FeatureProjectionMLP,
    "big": FeatureProjectionMLPBig,
}


def to_tensors(network: nn.Module, prefix: str) -> dict[str, NDArray[np.float32]]:
    """The network's weights as float32 arrays, named prefix + key."""
    return {
        prefix + key: tensor.detach().to(torch.float32).cpu().numpy().copy()
        for key, tensor in network.state_dict().items()
    }


def from_tensors(tensors: dict[str, NDArray[np.float32]], prefix: str) -> FeatureProjectionMLP:
    """The network whose weights stand in `tensors` under prefix; the inverse of `to_tensors`.

    Raises:
        KeyError: there is no input layer under the prefix.
    """
    state = {
        key.removeprefix(prefix): torch.from_numpy(np.array(tensor, np.float32))
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    kind = "big" if "projection_a.weight" in state else "published"
    in_features, out_features = state["input.weight"].shape[1], state["output.weight"].shape[0]
    network = MAPPING_NETWORKS[kind](in_features, out_features)
    network.load_state_dict(state)
    return network.eval()
