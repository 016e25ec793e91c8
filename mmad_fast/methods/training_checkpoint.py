"""The state of a fit's trainings in one file, from which a killed fit goes on. Fit half."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmad_fast.errors import InvalidInputError, MmadFastError
from mmad_fast.scan import PreparedScan
from mmad_fast.whole_folder import whole_file

INTERVAL_S = 60.0
"""Least time between two writes: what a kill costs at most, beside the features."""
MAX_SHARE_OF_TIME = 0.05
"""Of a training that goes into writing, where a file takes longer than seconds."""
_KEY = "mmad_fast_training"
_SEPARATOR = "/"


class TrainingPart(NamedTuple):
    """One training's state.

    Attributes:
        tensors: By name.
        facts: JSON types.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class TrainingCheckpoint:
    """The file. It is replaced whole, so that a kill at any moment leaves the last one."""

    def __init__(self, path: Path, fit: Mapping[str, Any]) -> None:
        """Looks into the file, if there is one.

        Args:
            path: Where it is, or is to be; its folder is made when it is written.
            fit: What the fit is that it belongs to, JSON types by name.

        Raises:
            InvalidInputError: what is there is no checkpoint, or that of another fit; or nothing
                can be written there.
        """
        _check_folder(path)
        self._path = path
        self._fit: dict[str, Any] = {}
        self._parts: dict[str, TrainingPart] = {}
        self._found: dict[str, Any] | None = _read_facts(path) if path.exists() else None
        self._next_write = 0.0
        self._scans = hashlib.sha256()
        self.expect(fit)

    def expect(self, fit: Mapping[str, Any]) -> None:
        """Adds to what the fit is.

        Raises:
            InvalidInputError: the file belongs to a fit of which something else is true.
        """
        fit = json.loads(json.dumps(fit))  # lists for tuples, as in the file
        self._fit.update(fit)
        if self._found is None:
            return
        there = self._found["fit"]
        other = [name for name in fit if name not in there or there[name] != fit[name]]
        if other:
            said = "; ".join(f"{n} is {there.get(n)!r} there, {fit[n]!r} here" for n in other[:3])
            more = f"; and {len(other) - 3} more" if len(other) > 3 else ""
            raise InvalidInputError(
                f"{self._path}: this checkpoint belongs to another fit ({said}{more}); name "
                "another file, or remove this one to begin anew"
            )

    def add_scan(self, prepared: PreparedScan) -> None:
        """Takes the next of the fit's scans."""
        for array in _arrays(prepared):
            self._scans.update(f"{array.dtype}{array.shape}".encode())
            self._scans.update(np.ascontiguousarray(array).data)

    def expect_scans(self) -> None:
        """Adds those that were taken to what the fit is.

        Raises:
            InvalidInputError: the file belongs to a fit on others.
        """
        self.expect({"sha256 of the scans": self._scans.hexdigest()})

    def read(self, name: str) -> TrainingPart | None:
        """The state of a training; None where the file has none.

        Raises:
            InvalidInputError: the file cannot be read any longer.
        """
        if name not in self._parts and self._found is not None and name in self._found["parts"]:
            prefix = name + _SEPARATOR
            try:
                with safe_open(self._path, "pt") as file:
                    keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                    tensors = {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
            except (OSError, SafetensorError) as error:
                raise _no_checkpoint(self._path, error) from error
            self._parts[name] = TrainingPart(tensors, self._found["parts"][name])
        return self._parts.get(name)

    def is_due(self) -> bool:
        """Enough time has passed to write again."""
        return time.monotonic() >= self._next_write

    def write(self, name: str, part: TrainingPart) -> None:
        """Replaces a training's state; those of the fit's other trainings stay.

        Raises:
            MmadFastError: the file cannot be written: a full disk, for one.
        """
        began = time.monotonic()
        self._parts[name] = part
        tensors = {
            f"{name}{_SEPARATOR}{key}": tensor.detach().cpu().contiguous()
            for name, (tensors, _) in self._parts.items()
            for key, tensor in tensors.items()
        }
        facts = {"fit": self._fit, "parts": {n: dict(p.facts) for n, p in self._parts.items()}}
        try:
            with whole_file(self._path) as partial:
                save_file(tensors, partial, metadata={_KEY: json.dumps(facts)})
        except (OSError, SafetensorError) as error:
            size = sum(tensor.nbytes for tensor in tensors.values()) / 2**20
            raise MmadFastError(
                f"{self._path}: the training's checkpoint cannot be written ({error}); it takes "
                f"{size:.0f} MiB, and as much again while it is replaced. Make room and run the "
                "same command again, which goes on from the last one written, or name a file "
                "elsewhere"
            ) from error
        ended = time.monotonic()
        self._next_write = ended + max(INTERVAL_S, (ended - began) / MAX_SHARE_OF_TIME)

    def remove(self) -> None:
        """Removes the file: the fit is done."""
        self._path.unlink(missing_ok=True)


def _check_folder(path: Path) -> None:
    """Raises InvalidInputError where a file cannot be written: before hours of training."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidInputError(
            f"{path}: nothing can be written in {folder}; choose a folder where you may write"
        )


def _arrays(record: Any) -> Iterator[NDArray]:
    """The arrays of a record and of the records in it."""
    if isinstance(record, np.ndarray):
        yield record
    elif dataclasses.is_dataclass(record):
        for one in dataclasses.fields(record):
            yield from _arrays(getattr(record, one.name))


def _read_facts(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its fit and its trainings.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
        return {"fit": dict(facts["fit"]), "parts": dict(facts["parts"])}
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise _no_checkpoint(path, error) from error


def _no_checkpoint(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"{path}: this is no checkpoint of a training that this version can read ({error}); name "
        "a new file"
    )
