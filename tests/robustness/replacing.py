"""Replaces an artifact by one of two, in turn, as often and as fast as it can.

Usage: python replacing.py FIRST SECOND TARGET COUNT [two-steps]

two-steps: as on a file system that cannot exchange two folders.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmad_fast import scratch_folder
from mmad_fast.artifact import read_artifact, write_artifact
from mmad_fast.detector import load


def writer_arguments(folder: Path) -> dict[str, Any]:
    """What `write_artifact` takes to write the artifact of a folder again."""
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    return {
        "method": manifest.method,
        "family": manifest.family,
        "preprocess": manifest.preprocess,
        "parameters": manifest.parameters,
        "threshold": manifest.threshold,
        "weights": manifest.weights,
        "graphs": {name: folder / graph["file"] for name, graph in manifest.graphs.items()},
        "tensors": artifact.tensors(),
        "golden": artifact.golden(),
    }


def write_other(first: Path, folder: Path) -> Path:
    """The path of a detector whose files are as long as those of the first, with another graph,
    other tensors, another threshold and other answers."""
    import onnx
    from onnx import numpy_helper

    arguments = writer_arguments(first)
    model = onnx.load(arguments["graphs"]["rgb"])
    for initializer in model.graph.initializer:
        if initializer.name == "weight":
            weight = numpy_helper.to_array(initializer)
            initializer.CopyFrom(numpy_helper.from_array(2 * weight, "weight"))
    onnx.save(model, folder / "rgb.onnx")
    arguments["graphs"] = {**arguments["graphs"], "rgb": folder / "rgb.onnx"}
    arguments["tensors"] = {
        name: np.ascontiguousarray(tensor[::-1]) if name.endswith("input.weight") else tensor
        for name, tensor in arguments["tensors"].items()
    }
    draft = write_artifact(folder / "artifact", **arguments)
    golden = arguments["golden"]
    result = load(draft).infer(golden.rgb, golden.xyz)
    arguments["golden"] = replace(
        golden, expected_map=result.anomaly_map, expected_score=result.image_score
    )
    arguments["threshold"] = replace(arguments["threshold"], value=1.25 * result.image_score)
    return write_artifact(draft, **arguments)


@contextmanager
def replacements(
    first: Path, second: Path, target: Path, count: int, *options: str
) -> Iterator[subprocess.Popen[str]]:
    """A process that replaces the target so often, and has just begun."""
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, (first, second, target, count)), *options],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.communicate()


def main(first: Path, second: Path, target: Path, count: int) -> None:
    """Replaces the target `count` times."""
    both = [writer_arguments(folder) for folder in (second, first)]
    print("ready", flush=True)
    sys.stdin.readline()
    for index in range(count):
        write_artifact(target, **both[index % 2])


if __name__ == "__main__":
    *folders, number = sys.argv[1:5]
    if sys.argv[5:]:
        scratch_folder._exchange = lambda one, other: False
    main(*map(Path, folders), int(number))
