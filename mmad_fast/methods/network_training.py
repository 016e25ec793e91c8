"""How networks are trained on the stored features of scans: the part that families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.errors import InvalidInputError, MmadFastError
from mmad_fast.methods.training_checkpoint import TrainingCheckpoint, TrainingPart

TrainingProgress = Callable[[str, int, int], None]
"""Called with the network's name, steps done, steps in all; first before the first step."""

_NETWORK, _OPTIMIZER = "network.", "optimizer."


@dataclass(frozen=True)
class Schedule:
    """How a network is trained, by Adam.

    Attributes:
        epochs: Passes over the training scans.
        batch_scans: Scans per step; of fewer scans all are one batch.
        learning_rate: At the start.
        is_cosine: The learning rate falls to zero over all steps.
        decay: What it is multiplied by after each pass.
        betas: Of Adam.
        weight_decay: Of Adam.
        drops_rest: What is left of a pass after the last full batch is left out; else the pass is
            cut into batches of nearly one size, so that none is of one scan, whose BatchNorm
            statistics would count as much as a full one's.
        uses_bfloat16: Convolutions are computed in it where the processor can.
    """

    epochs: int
    batch_scans: int
    learning_rate: float
    is_cosine: bool = False
    decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    drops_rest: bool = False
    uses_bfloat16: bool = False

    def steps_per_pass(self, num_scans: int) -> int:
        """Batches of a pass over so many scans."""
        batches = num_scans / min(self.batch_scans, num_scans)
        return math.floor(batches) if self.drops_rest else math.ceil(batches)

    def batches(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The steps of a pass over the scans in this order."""
        num_batches = self.steps_per_pass(len(order))
        if self.drops_rest:
            order = order[: num_batches * self.batch_scans]
        return np.array_split(order, num_batches)

    def rate(self, step: int, num_scans: int) -> float:
        """The learning rate of a step, counted from 0 over all passes."""
        per_pass = self.steps_per_pass(num_scans)
        share = self.decay ** (step // per_pass)
        if self.is_cosine:
            share *= 0.5 * (1 + math.cos(math.pi * step / (self.epochs * per_pass)))
        return self.learning_rate * share


@dataclass
class _Progress:
    """Where a training stands.

    Attributes:
        done: Steps.
        losses: Mean loss of each whole pass.
        of_pass: Loss of each step since.
    """

    done: int
    losses: list[float]
    of_pass: list[float]


def train_network(
    network: nn.Module,
    loss_of: Callable[[Sequence[int]], Tensor],
    num_scans: int,
    schedule: Schedule,
    *,
    name: str,
    seed: int,
    progress: TrainingProgress | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> list[float]:
    """The mean loss of each pass; the network is trained in place, and is in evaluation mode after.

    The order of the scans follows from the seed, and the state of the checkpoint is all that a step
    depends on: a training that was killed and goes on gives the same weights as one that was not,
    on the same machine with as many threads.

    Args:
        network: Where it is to be trained.
        loss_of: () loss of a batch of scans, by their indices.
        num_scans: At least 1.
        schedule: How.
        name: What messages, progress and checkpoint call the network.
        seed: Of the order.
        progress: Told of every step.
        checkpoint: Read before the first step, and written from time to time and at the end.

    Raises:
        InvalidInputError: the checkpoint is of another network.
        MmadFastError: the loss became NaN or infinite, or the checkpoint cannot be written.
    """
    optimizer = torch.optim.Adam(
        network.parameters(),
        lr=schedule.learning_rate,
        betas=schedule.betas,
        weight_decay=schedule.weight_decay,
    )
    network.train()
    to_channels_last(network)
    per_pass = schedule.steps_per_pass(num_scans)
    num_steps = schedule.epochs * per_pass
    state = _resume(network, optimizer, name, checkpoint)
    rng = np.random.default_rng(seed)
    if progress is not None:
        progress(name, state.done, num_steps)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for epoch in range(schedule.epochs):
            # Drawn also for passes that are done, so that those that follow are the same.
            batches = schedule.batches(rng.permutation(num_scans))
            for batch in batches[max(0, state.done - epoch * per_pass) :]:
                optimizer.param_groups[0]["lr"] = schedule.rate(state.done, num_scans)
                state.of_pass.append(_step(optimizer, loss_of, batch.tolist(), schedule, name))
                state.done += 1
                if state.done == (epoch + 1) * per_pass:
                    state.losses.append(float(np.mean(state.of_pass)))
                    state.of_pass.clear()
                if checkpoint is not None and (state.done == num_steps or checkpoint.is_due()):
                    checkpoint.write(name, _part(network, optimizer, state))
                if progress is not None:
                    progress(name, state.done, num_steps)
    network.eval()
    return state.losses


def to_channels_last(network: nn.Module) -> None:
    """Weights in the order in which convolutions are fastest, in place."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def training_device() -> torch.device:
    """Where networks are trained: the first GPU that torch can use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device | None = None) -> bool:
    """The device multiplies in bfloat16, which else takes longer than float32; None: the CPU."""
    if device is not None and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _step(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Sequence[int]], Tensor],
    batch: Sequence[int],
    schedule: Schedule,
    name: str,
) -> float:
    """The loss of a batch, before the step.

    Raises:
        MmadFastError: it is NaN or infinite.
    """
    loss = loss_of(batch)
    value = loss.item()
    if not math.isfinite(value):
        raise MmadFastError(
            f"the training loss of the {name} became {value} at learning rate "
            f"{schedule.learning_rate:g}; lower learning_rate, or check the features"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return value


def _part(network: nn.Module, optimizer: torch.optim.Optimizer, state: _Progress) -> TrainingPart:
    """What a checkpoint keeps."""
    tensors = {_NETWORK + key: tensor for key, tensor in network.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{number}.{key}": value for key, value in moments.items()}
    facts = {"done": state.done, "losses": state.losses, "of_pass": state.of_pass}
    return TrainingPart(tensors, facts)


def _resume(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    checkpoint: TrainingCheckpoint | None,
) -> _Progress:
    """Where the training stands; network and optimizer are brought there.

    Raises:
        InvalidInputError: the checkpoint is of another network.
    """
    part = None if checkpoint is None else checkpoint.read(name)
    if part is None:
        return _Progress(0, [], [])
    own = {k.removeprefix(_NETWORK): t for k, t in part.tensors.items() if k.startswith(_NETWORK)}
    moments: dict[int, dict[str, Any]] = {}
    for key, tensor in part.tensors.items():
        if key.startswith(_OPTIMIZER):
            number, _, moment = key.removeprefix(_OPTIMIZER).partition(".")
            moments.setdefault(int(number), {})[moment] = tensor
    try:
        network.load_state_dict(own)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        facts: Mapping[str, Any] = part.facts
        return _Progress(int(facts["done"]), list(facts["losses"]), list(facts["of_pass"]))
    except (RuntimeError, ValueError, LookupError) as error:
        raise InvalidInputError(
            f"the checkpoint holds another {name} than this fit trains ({error}); name another "
            "file, or remove this one to begin anew"
        ) from error
