"""The detector artifact: a folder that holds everything a detector needs to run.

    manifest.json        what it is, its constants, and the sha256 of every other file
    <name>.onnx          frozen networks, static shapes
    tensors.safetensors  arrays used outside the networks (mapping weights, memory banks)
    golden.safetensors   one scan with its expected anomaly map and score

It is written whole or not at all, holds no pickle, and is verified when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from mmad_fast.errors import ArtifactError, InvalidInputError

SCHEMA_VERSION = 2
"""2: the point embedder is no longer part of the graph "points"; its weights are tensors."""
MANIFEST_FILE = "manifest.json"
TENSORS_FILE = "tensors.safetensors"
GOLDEN_FILE = "golden.safetensors"
_DIGEST_KEY = "manifest_sha256"
_RECORDED_PACKAGES = ("mmad-fast", "numpy", "onnx", "onnxruntime", "torch")


@dataclass(frozen=True)
class Golden:
    """A scan with the answer that the detector gave when it was fitted.

    Attributes:
        rgb: (H, W, 3) uint8.
        xyz: (H, W, 3) float32 metres.
        expected_map: (S, S) float32 anomaly map.
        expected_score: The image score.
    """

    rgb: NDArray[np.uint8]
    xyz: NDArray[np.float32]
    expected_map: NDArray[np.float32]
    expected_score: float


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    Attributes:
        schema: Version of this layout; a reader takes its own only.
        method: The variant's name, e.g. "cfm-s".
        family: The folder of methods/ that runs it, e.g. "cfm".
        created: ISO date and time, UTC.
        tool_versions: Version of each package that made it.
        preprocess: The preprocessing recipe's constants.
        parameters: Constants of the method.
        threshold: {"value", "quantile", "num_scans"} or None.
        weights: Where each backbone's weights came from.
        graphs: Per graph its file and the shapes of its inputs and outputs.
        tensors: Per tensor its shape and dtype.
        files: Per file its sha256 and size in bytes.
    """

    schema: int
    method: str
    family: str
    created: str
    tool_versions: dict[str, str]
    preprocess: dict[str, Any]
    parameters: dict[str, Any]
    threshold: dict[str, Any] | None
    weights: dict[str, Any]
    graphs: dict[str, Any]
    tensors: dict[str, Any]
    files: dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """A verified artifact on disk."""

    path: Path
    manifest: Manifest

    def graph_path(self, name: str) -> Path:
        """The file of the graph of that name.

        Raises:
            ArtifactError: the artifact has no such graph.
        """
        try:
            return self.path / self.manifest.graphs[name]["file"]
        except KeyError:
            known = ", ".join(self.manifest.graphs) or "none"
            raise ArtifactError(
                f"{self.path}: the artifact has no graph {name!r} (it has: {known}); fit it again"
            ) from None

    def tensors(self) -> dict[str, NDArray]:
        """All tensors by name, checked against the manifest's shapes and dtypes.

        Raises:
            ArtifactError: the file is unreadable or a tensor is missing or misshapen.
        """
        tensors = _read_safetensors(self.path / TENSORS_FILE)
        for name, wanted in self.manifest.tensors.items():
            if name not in tensors:
                raise ArtifactError(
                    f"{self.path}: tensor {name!r} is missing from {TENSORS_FILE}; fit it again"
                )
            found = _describe(tensors[name])
            if found != wanted:
                raise ArtifactError(
                    f"{self.path}: tensor {name!r} is {found['dtype']} {found['shape']}, the "
                    f"manifest says {wanted['dtype']} {wanted['shape']}; fit it again"
                )
        return tensors

    def golden(self) -> Golden:
        """The golden scan and its expected result.

        Raises:
            ArtifactError: the file is unreadable or incomplete.
        """
        arrays = _read_safetensors(self.path / GOLDEN_FILE)
        try:
            return Golden(
                arrays["rgb"], arrays["xyz"], arrays["map"], float(arrays["score"].reshape(()))
            )
        except (KeyError, ValueError) as error:
            raise ArtifactError(
                f"{self.path / GOLDEN_FILE}: the golden scan is incomplete ({error}); fit it again"
            ) from error


def write_artifact(
    path: Path | str,
    *,
    method: str,
    family: str,
    preprocess: Mapping[str, Any],
    parameters: Mapping[str, Any],
    threshold: Mapping[str, Any] | None,
    weights: Mapping[str, Any],
    graphs: Mapping[str, Path],
    tensors: Mapping[str, NDArray],
    golden: Golden,
) -> Path:
    """The absolute path of a new artifact, complete on disk.

    Everything is written to a sibling folder first and moved into place at the end: an interrupted
    write leaves the target as it was. An artifact that stands at `path` is replaced.

    Args:
        path: The artifact's folder.
        method: Variant name.
        family: Folder of methods/ whose detector runs it.
        preprocess: Recipe constants, JSON types.
        parameters: Method constants, JSON types.
        threshold: Decision threshold record or None.
        weights: Where the backbones' weights came from, JSON types.
        graphs: ONNX file by graph name; the files are copied.
        tensors: Arrays by name.
        golden: The golden scan with its expected result.

    Raises:
        InvalidInputError: `path` is no path.
        ArtifactError: `path` is a file, or a folder that holds something else than an artifact, or
            cannot be written.
    """
    with _new_folder_beside(path) as (scratch, target):
        for name, file in graphs.items():
            shutil.copyfile(file, scratch / f"{name}.onnx")
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        safetensors.numpy.save_file(contiguous, scratch / TENSORS_FILE)
        _save_golden(golden, scratch / GOLDEN_FILE)
        manifest = Manifest(
            schema=SCHEMA_VERSION,
            method=method,
            family=family,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            tool_versions=_tool_versions(),
            preprocess=dict(preprocess),
            parameters=dict(parameters),
            threshold=None if threshold is None else dict(threshold),
            weights=dict(weights),
            graphs={name: _describe_graph(scratch / f"{name}.onnx") for name in graphs},
            tensors={name: _describe(tensor) for name, tensor in contiguous.items()},
            files={file.name: _fingerprint(file) for file in sorted(scratch.iterdir())},
        )
        _write_manifest(manifest, scratch / MANIFEST_FILE)
        _make_readable(scratch)
        _move_into_place(scratch, target)
    return target


def check_target(path: Path | str) -> None:
    """Raises if an artifact cannot be written at `path`; call it before hours of fitting.

    It makes the folder that writing would begin with, and removes it.

    Raises:
        InvalidInputError: `path` is no path.
        ArtifactError: `path` is a file, or a folder that holds something else than an artifact, or
            cannot be written.
    """
    with _new_folder_beside(path):
        pass


@contextmanager
def _new_folder_beside(path: Path | str) -> Iterator[tuple[Path, Path]]:
    """(new empty folder beside the target, the target), the target checked to be replaceable.

    At the end the folder is removed if it is still there, and so are parents made for it that
    stayed empty.
    """
    missing: list[Path] = []
    try:
        target = _as_path(path).resolve()
        _check_replaceable(target)
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield scratch, target
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(
            f"{path}: the artifact cannot be written ({reason}); "
            "choose a folder with room where you may write"
        ) from error
    finally:
        for folder in missing:  # the innermost first
            with suppress(OSError):  # it holds the artifact, or was never made
                folder.rmdir()


def _as_path(path: Path | str) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInputError(f"the artifact's path is {path!r}; it must be a folder's path")
    return Path(path)


def _check_replaceable(target: Path) -> None:
    """Raises if there is something at the target that is not an artifact of ours, and that alone.

    Raises:
        ArtifactError: it is a file, or a folder that holds other files.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtifactError(f"{target}: is a file; name a new folder for the artifact")
    others = sorted({file.name for file in target.iterdir()} - _own_files(target))
    if others:
        more = ", ..." if len(others) > 3 else ""
        raise ArtifactError(
            f"{target}: the folder holds other files than those of a detector artifact "
            f"({', '.join(others[:3])}{more}); name a new folder, or empty this one"
        )


def _own_files(folder: Path) -> set[str]:
    """The names of the files that belong to the artifact in a folder; empty if there is none."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    is_ours = isinstance(content, dict) and {"schema", _DIGEST_KEY, "files"} <= content.keys()
    return {MANIFEST_FILE, *content["files"]} if is_ours else set()


def read_artifact(path: Path | str, *, verify: bool = True) -> Artifact:
    """The artifact in a folder, verified.

    Args:
        path: The artifact's folder.
        verify: Check the sha256 of every file (about 1 GB/s); sizes are checked always.

    Raises:
        InvalidInputError: `path` is no path.
        ArtifactError: the folder or a file is missing or may not be read, a byte has changed, the
            manifest is not readable or its schema is not the one of this version.
    """
    folder = _as_path(path)
    try:
        manifest = _read_manifest(folder)
        for name, wanted in manifest.files.items():
            _verify_file(folder / name, wanted, verify)
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or folder}: cannot be read ({error.strerror or error}); check that "
            "you may read the artifact's files"
        ) from error
    return Artifact(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder}: no such artifact folder; make one with `mmad-fast fit`, or check the path"
        )
    if not file.is_file():
        raise ArtifactError(
            f"{folder}: has no {MANIFEST_FILE}, so it is not a detector artifact; "
            "name the folder that `mmad-fast fit --output` wrote"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        schema = int(content["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file}: is not a readable manifest ({error!r}); copy the artifact again or refit"
        ) from error
    if schema > SCHEMA_VERSION:
        raise ArtifactError(
            f"{file}: has schema {schema}, this version reads {SCHEMA_VERSION}; upgrade with:"
            " pip install --upgrade mmad-fast"
        )
    if schema < SCHEMA_VERSION:
        raise ArtifactError(
            f"{file}: has schema {schema}, this version reads {SCHEMA_VERSION}; fit the detector "
            "again: mmad-fast fit"
        )
    digest = content.pop(_DIGEST_KEY, None)
    if digest != _digest(content):
        raise ArtifactError(
            f"{file}: has been changed since it was written (its own sha256 differs); "
            "copy the artifact again or refit"
        )
    wanted = {field.name for field in fields(Manifest)}
    if set(content) != wanted:
        raise ArtifactError(
            f"{file}: has the wrong fields (missing: {sorted(wanted - set(content))}, unknown: "
            f"{sorted(set(content) - wanted)}); refit with this version"
        )
    manifest = Manifest(**content)
    names = [*manifest.files, *(graph["file"] for graph in manifest.graphs.values())]
    for name in names:
        if Path(name).name != name or name not in manifest.files:
            raise ArtifactError(f"{file}: names a file outside the artifact: {name!r}; refit")
    return manifest


def _verify_file(file: Path, wanted: Mapping[str, Any], verify: bool) -> None:
    if not file.is_file():
        raise ArtifactError(
            f"{file.parent}: the file {file.name} is missing; copy the artifact again or refit"
        )
    size = file.stat().st_size
    if size != wanted["bytes"]:
        raise ArtifactError(
            f"{file.parent}: {file.name} has {size} bytes, the manifest says {wanted['bytes']}; "
            "copy the artifact again or refit"
        )
    if verify and (found := _fingerprint(file)["sha256"]) != wanted["sha256"]:
        raise ArtifactError(
            f"{file.parent}: {file.name} has been changed (sha256 {found[:12]}..., the manifest "
            f"says {wanted['sha256'][:12]}...); copy the artifact again or refit"
        )


def _read_safetensors(file: Path) -> dict[str, NDArray]:
    try:
        return safetensors.numpy.load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(
            f"{file}: is not a readable safetensors file ({error}); copy the artifact again"
        ) from error


def _save_golden(golden: Golden, file: Path) -> None:
    arrays: dict[str, NDArray] = {
        "rgb": np.ascontiguousarray(golden.rgb),
        "xyz": np.ascontiguousarray(golden.xyz),
        "map": np.ascontiguousarray(golden.expected_map),
        "score": np.array([golden.expected_score], np.float64),
    }
    safetensors.numpy.save_file(arrays, file)


def _write_manifest(manifest: Manifest, file: Path) -> None:
    content = asdict(manifest)
    content[_DIGEST_KEY] = _digest(content)
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "bytes": file.stat().st_size}


def _describe(array: NDArray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _describe_graph(file: Path) -> dict[str, Any]:
    from mmad_fast.engines.onnx_runtime import OnnxRuntimeEngine

    engine = OnnxRuntimeEngine(file, num_threads=1)
    return {
        "file": file.name,
        "inputs": {name: list(shape) for name, shape in engine.input_shapes.items()},
        "outputs": {name: list(shape) for name, shape in engine.output_shapes.items()},
    }


def _tool_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _make_readable(folder: Path) -> None:
    """Permissions as for any new file; temporary folders and safetensors are the owner's alone."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)


def _move_into_place(scratch: Path, target: Path) -> None:
    """Replaces `target` by `scratch`; the old artifact is set aside first and removed last.

    Raises:
        ArtifactError: replacing failed, and so did putting the old artifact back; says where it is.
    """
    if not target.exists():
        os.rename(scratch, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    old = aside / target.name
    try:
        os.rename(target, old)
        os.rename(scratch, target)
    except BaseException:  # an interrupt too must not cost the old artifact
        _put_back(old, target)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    if target.exists():  # it was not yet set aside, or has been replaced already
        return
    try:
        os.rename(old, target)
    except OSError as error:
        raise ArtifactError(
            f"{target}: replacing the artifact failed, and so did putting the old one back "
            f"({error.strerror or error}); the old one is whole at {old}: move it back"
        ) from error
