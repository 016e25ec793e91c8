"""The training that families share: its steps, and that a killed one goes on to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmad_fast.errors import InvalidInputError, MmadFastError
from mmad_fast.methods import training_checkpoint
from mmad_fast.methods.network_training import Schedule, train_network
from mmad_fast.methods.training_checkpoint import TrainingCheckpoint

NUM_SCANS = 10
SCHEDULE = Schedule(epochs=4, batch_scans=3, learning_rate=1e-2, is_cosine=True, decay=0.9)
FIT = {"method": "toy", "seed": 0, "levels": (1, 2)}
PER_PASS = 4


class Toy(nn.Module):
    """A network with all that a state may hold: convolutions, running statistics, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Conv2d(4, 2, 1)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.gain * self.last(self.layers(image))


def new_network() -> Toy:
    torch.manual_seed(0)
    return Toy()


def train(
    network: Toy,
    checkpoint: TrainingCheckpoint | None = None,
    *,
    seed: int = 0,
    schedule: Schedule = SCHEDULE,
    stop_at: int | None = None,
    kill_at: int | None = None,
) -> list[float]:
    """The losses of a training, which is interrupted or killed where that is asked."""
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(NUM_SCANS, 2, 5, 5))).float()

    def loss_of(batch: Sequence[int]) -> Tensor:
        return (network(images[list(batch)]) - images[list(batch)]).square().mean()

    def progress(name: str, done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return train_network(
        network,
        loss_of,
        NUM_SCANS,
        schedule,
        name="toy",
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
    )


@pytest.fixture
def always_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_checkpoint, "INTERVAL_S", 0.0)
    monkeypatch.setattr(training_checkpoint, "MAX_SHARE_OF_TIME", np.inf)


def equal_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.own_process
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no kill -9")
@pytest.mark.parametrize("kill_at", [1, PER_PASS, 2 * PER_PASS + 1])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    tmp_path: Path, always_written: None, kill_at: int
) -> None:
    whole = new_network()
    losses = train(whole)
    file = tmp_path / "training.safetensors"
    program = (
        "import math, pathlib, sys, torch; torch.set_num_threads(int(sys.argv[3]));"
        "from mmad_fast.methods import training_checkpoint as t; import test_network_training as n;"
        "t.INTERVAL_S, t.MAX_SHARE_OF_TIME = 0.0, math.inf;"
        "c = t.TrainingCheckpoint(pathlib.Path(sys.argv[1]), n.FIT);"
        "n.train(n.new_network(), c, kill_at=int(sys.argv[2]))"
    )
    arguments = [str(file), str(kill_at), str(torch.get_num_threads())]
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=Path(__file__).parent, timeout=120
    )
    assert run.returncode == -signal.SIGKILL
    resumed = new_network()
    assert train(resumed, TrainingCheckpoint(file, FIT)) == losses
    assert equal_weights(resumed, whole)
    other = new_network()
    train(other, seed=1)
    assert not equal_weights(other, whole)


def test_a_training_that_is_done_is_not_done_again(tmp_path: Path, always_written: None) -> None:
    file = tmp_path / "deep" / "training.safetensors"
    first, second = new_network(), new_network()
    losses = train(first, TrainingCheckpoint(file, FIT))
    with torch.no_grad():
        second.gain.fill_(7.0)
    before = file.stat().st_mtime_ns
    assert train(second, TrainingCheckpoint(file, FIT), stop_at=1) == losses
    assert equal_weights(first, second)
    assert not second.training
    assert file.stat().st_mtime_ns == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_file_is_written_from_time_to_time_and_at_the_end(tmp_path: Path) -> None:
    checkpoint = TrainingCheckpoint(tmp_path / "training.safetensors", FIT)
    assert checkpoint.is_due()
    with pytest.raises(KeyboardInterrupt):
        train(new_network(), checkpoint, stop_at=PER_PASS)
    part = TrainingCheckpoint(tmp_path / "training.safetensors", FIT).read("toy")
    assert part is not None
    assert part.facts["done"] == 1
    assert not checkpoint.is_due()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"levels": (1, 3)}, r"levels is \[1, 2\] there, \[1, 3\] here"),
        ({"epochs": 5}, "epochs is None there, 5 here"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "and 1 more"),
    ],
)
def test_the_checkpoint_of_another_fit_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    file = tmp_path / "training.safetensors"
    train(new_network(), TrainingCheckpoint(file, FIT))
    with pytest.raises(InvalidInputError, match=f"another fit .*{words}.*or remove this one"):
        TrainingCheckpoint(file, {**FIT, **change})
    late = TrainingCheckpoint(file, FIT)
    with pytest.raises(InvalidInputError, match="belongs to another fit"):
        late.expect_scans()


def test_the_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "training.safetensors"
    train(new_network(), TrainingCheckpoint(file, FIT))
    other = new_network()
    other.last = nn.Conv2d(4, 2, 3, padding=1)
    with pytest.raises(InvalidInputError, match="holds another toy than this fit trains"):
        train(other, TrainingCheckpoint(file, FIT))


def test_what_is_no_checkpoint_is_refused_and_stays(tmp_path: Path) -> None:
    for name in ("text", "weights", "folder"):
        (tmp_path / name).mkdir() if name == "folder" else (tmp_path / name).write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights")
    for name in ("text", "weights", "folder"):
        with pytest.raises(InvalidInputError, match=f"{name}: this is no checkpoint.*a new file"):
            TrainingCheckpoint(tmp_path / name, FIT)
    assert load_file(tmp_path / "weights")


def test_a_place_where_nothing_can_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=r"nothing can be written in .*file; choose a fol"):
        TrainingCheckpoint(tmp_path / "file" / "deep" / "training.safetensors", FIT)


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(
    tmp_path: Path, always_written: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(new_network(), TrainingCheckpoint(file, FIT), stop_at=2)
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_checkpoint, "save_file", full)
    with pytest.raises(MmadFastError, match=r"No space left.*MiB.*run the same command again"):
        train(new_network(), TrainingCheckpoint(file, FIT))
    assert file.read_bytes() == before


def test_a_pass_is_cut_evenly_or_its_rest_is_left_out() -> None:
    sizes: list[int] = []
    network = new_network()

    def loss_of(batch: Sequence[int]) -> Tensor:
        sizes.append(len(batch))
        return network(torch.ones(len(batch), 2, 3, 3)).square().mean()

    for num_scans, drops_rest, expected in [
        (10, False, [4, 3, 3]),
        (9, False, [3, 3, 3]),
        (10, True, [4, 4]),
        (8, False, [4, 4]),
        (8, True, [4, 4]),
        (3, True, [3]),
        (1, False, [1]),
    ]:
        sizes.clear()
        schedule = Schedule(epochs=2, batch_scans=4, learning_rate=0.1, drops_rest=drops_rest)
        train_network(network, loss_of, num_scans, schedule, name="toy", seed=0)
        assert sizes == 2 * expected
        assert schedule.steps_per_pass(num_scans) == len(expected)


def test_every_scan_is_seen_once_a_pass() -> None:
    seen: list[int] = []
    network = new_network()

    def loss_of(batch: Sequence[int]) -> Tensor:
        seen.extend(batch)
        return network(torch.ones(len(batch), 2, 3, 3)).square().mean()

    train_network(network, loss_of, NUM_SCANS, replace(SCHEDULE, epochs=2), name="toy", seed=0)
    assert sorted(seen[:NUM_SCANS]) == sorted(seen[NUM_SCANS:]) == list(range(NUM_SCANS))
    assert seen[:NUM_SCANS] != seen[NUM_SCANS:]


def test_the_learning_rate_falls_as_the_schedule_says() -> None:
    constant = Schedule(epochs=2, batch_scans=5, learning_rate=0.1)
    rates = [replace(constant, decay=0.5).rate(step, NUM_SCANS) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05])
    rates = [replace(constant, is_cosine=True).rate(step, NUM_SCANS) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.1 * (0.5 + 0.5**1.5), 0.05, 0.1 * (0.5 - 0.5**1.5)])


def test_divergence_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(MmadFastError, match=r"loss of the toy became .* lower learning_rate"):
        train(new_network(), schedule=replace(SCHEDULE, learning_rate=1e30))
