"""BatchNorm statistics of the frozen teacher, estimated anew on each modality's pictures."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmad_fast.errors import EmptyScanError
from mmad_fast.methods.network_training import training_device

BATCH_SCANS = 16
"""Scans that are normalised together; at most, since a pass is cut into batches of nearly one
size."""

Statistics = Mapping[str, NDArray[np.float32]]
"""Running means and variances by key of the network's state."""


def estimate_statistics(
    network: nn.Module,
    num_scans: int,
    pictures_of: Callable[[int], Mapping[str, NDArray[np.float32]]],
    *,
    passes: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> dict[str, Statistics]:
    """The statistics of each modality, whose pictures go through the same weights.

    Each layer normalises a batch by the batch's own mean and variance, as in training, so that the
    layers behind see what they will see afterwards; what is kept is the mean over all batches of
    all passes. It owes nothing to the official statistics. Weights, and the factor and offset of
    each BatchNorm, stay.

    Args:
        network: Frozen; it stays as it is.
        num_scans: Of the training.
        pictures_of: Per modality a scan's picture (1, 3, R, R), by its index.
        passes: Over the scans, each in another order.
        seed: Of these.
        progress: Called with (scans done, scans in all passes).

    Raises:
        EmptyScanError: no scan has anything to see.

    Source: MMRD, "Cross-Statistics Siamese Teacher Network": updated "within several epochs with
        parameters of affine transformation unchanged". How long, and from what, it does not say.
    """
    copies: dict[str, nn.Module] = {}
    device = training_device()
    rng = np.random.default_rng(seed)
    total, done = passes * num_scans, 0
    for _ in range(passes):
        order = rng.permutation(num_scans)
        for batch in np.array_split(order, math.ceil(num_scans / BATCH_SCANS)):
            for name, pictures in _pictures(batch.tolist(), pictures_of).items():
                if name not in copies:
                    copies[name] = _counting_copy(network).to(device)
                with torch.no_grad():
                    copies[name](torch.from_numpy(np.concatenate(pictures)).to(device))
            done += len(batch)
            progress(done, total)
    if not copies:
        raise EmptyScanError(
            f"none of the {num_scans} training scans has a measured point; check the unit of the "
            "files"
        )
    network.cpu()  # the copies took the weights that they share with it to the device
    return {name: _statistics(one) for name, one in copies.items()}


def _pictures(
    batch: list[int], pictures_of: Callable[[int], Mapping[str, NDArray[np.float32]]]
) -> dict[str, list[NDArray[np.float32]]]:
    """Per modality the pictures of those scans of a batch that have any."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    for index in batch:
        try:
            pictures = pictures_of(index)
        except EmptyScanError:  # the features' extraction will say so
            continue
        for name, picture in pictures.items():
            found.setdefault(name, []).append(picture)
    return found


def _counting_copy(network: nn.Module) -> nn.Module:
    """A network that shares the weights and counts statistics of its own."""
    shared = {id(parameter): parameter for parameter in network.parameters()}
    counting = copy.deepcopy(network, shared).eval()
    for module in counting.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
            module.train()
    return counting


def _statistics(network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The running means and variances of a network."""
    return {
        f"{name}.{kind}": getattr(module, kind).cpu().numpy().copy()
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        for kind in ("running_mean", "running_var")
    }
