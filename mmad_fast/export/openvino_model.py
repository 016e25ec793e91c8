"""ONNX graph -> OpenVINO's own format (IR): an .xml with the graph and a .bin with its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmad_fast.errors import ArtifactError, InvalidInputError, MmadFastError
from mmad_fast.scratch_folder import scratch_folder

if TYPE_CHECKING:
    import onnx


def save_openvino_model(model: onnx.ModelProto, path: Path, *, precision: str) -> list[Path]:
    """The paths of the model's two files, .xml and .bin, written when OpenVINO has read the graph.

    Each of the two replaces an older one whole; the .xml, which an engine opens, comes last.

    Args:
        model: What `deployment_graph` gives for "openvino".
        path: Where to write the .xml; the .bin lies beside it under the same name.
        precision: The graph's. With "fp16" what is still float32 in it is stored as float16 too;
            OpenVINO computes with it in float32. int8 and fp8 are in the graph's nodes.

    Raises:
        InvalidInputError: `path` does not end in .xml.
        ArtifactError: the files cannot be written.
        MmadFastError: OpenVINO cannot read the graph.
    """
    if path.suffix != ".xml":
        raise InvalidInputError(f"the model's path is {path}; it must end in .xml")
    from mmad_fast.engines.openvino import VERSION, openvino  # so that it reports to nobody

    try:
        converted = openvino.Core().read_model(model.SerializeToString(), b"")
    except RuntimeError as error:
        raise MmadFastError(
            f"OpenVINO {VERSION} cannot read the graph: {error}; upgrade it with: "
            "pip install --upgrade openvino"
        ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path.parent, path.name) as folder:
            partial = folder / path.name
            openvino.save_model(converted, str(partial), compress_to_fp16=precision == "fp16")
            for suffix in (".bin", ".xml"):
                os.replace(partial.with_suffix(suffix), path.with_suffix(suffix))
    except (OSError, RuntimeError) as error:  # OpenVINO's own, where the disk is full
        raise ArtifactError(
            f"{path}: the OpenVINO model cannot be written ({error}); choose a folder with room "
            "where you may write"
        ) from error
    return [path, path.with_suffix(".bin")]
