"""A folder of compiled kernels: cubins by compute capability, and what a launch must know of them.

    manifest.json                        versions, one record per cubin, the sha256 of every file
    sm_<sm>/<kernel>.<config>.cubin

`ahead_of_time` writes it, `launcher` runs what is in it. Imports neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmad_fast.errors import ArtifactError
from mmad_fast.folder_files import FolderFiles, read_whole
from mmad_fast.gpu.architectures import ARCHITECTURES
from mmad_fast.manifest import (
    BOOLEAN,
    FINGERPRINT,
    OBJECT,
    TEXT,
    ByName,
    Fields,
    Many,
    Maybe,
    integers,
    matching,
)
from mmad_fast.scratch_folder import replace_folder
from mmad_fast.whole_folder import (
    MANIFEST_FILE,
    FolderKind,
    as_path,
    fingerprint,
    make_readable,
    new_folder_beside,
    reading,
    write_manifest,
)

SCHEMA_VERSION = 1
KERNEL_NAME = matching(r"[\w.,=+-]{1,200}", "a name without a folder")
_COUNT = integers(0, 2**31 - 1)
_KERNEL = Fields(
    {
        "name": KERNEL_NAME,
        "config": KERNEL_NAME,
        "is_default": BOOLEAN,
        "sm": integers(1, 999),
        "entry": TEXT,
        "constants": OBJECT,
        "num_warps": integers(1, 32),
        "num_stages": _COUNT,
        "shared_bytes": _COUNT,
        "arguments": Many(Many(TEXT, minimum=2, maximum=2)),
        "hidden_pointers": integers(0, 64),
        "registers": _COUNT,
        "spill_bytes": _COUNT,
        "tensor_core_instruction": Maybe(TEXT),
        "wide_loads": _COUNT,
        "ptxas": TEXT,
    }
)
_MANIFEST = Fields(
    {
        "schema": integers(SCHEMA_VERSION, SCHEMA_VERSION),
        "triton": TEXT,
        "kernels": Many(_KERNEL),
        "files": ByName(FINGERPRINT, TEXT),
    }
)
KIND = FolderKind(
    name="folder of kernels",
    contents="a folder of compiled kernels",
    schema=SCHEMA_VERSION,
    mark="kernels",
    command="mmad-fast kernels build",
    again="copy the folder again, or build it: mmad-fast kernels build",
    renew="build the kernels again",
    rule=lambda schema: _MANIFEST,
)
DIVISIBILITY = 16


@dataclass(frozen=True)
class CompiledKernel:
    """What is known of one cubin.

    Attributes:
        name: The kernel's name, "<op>.<what>.<types>".
        config: The label of its configuration.
        is_default: Runs unless another configuration is named.
        sm: The compute capability it was compiled for; it runs on no other.
        entry: Its symbol in the cubin.
        constants: The constexprs that are compiled in.
        num_warps: Warps of a block: a block has 32 times as many threads.
        num_stages: Depth of the pipeline of loads.
        shared_bytes: Dynamic shared memory of a block.
        arguments: (name, Triton's type) in the order of the parameters; ":16" behind the type as
            in `TritonKernel.arguments`.
        hidden_pointers: Parameters behind the arguments that Triton adds (its scratch memories,
            which none of our kernels uses): null pointers.
        registers: Of a thread.
        spill_bytes: Stack of a thread; what does not fit the registers lies there.
        tensor_core_instruction: "mma.sync", "wgmma.mma_async", "tcgen05.mma", or None.
        wide_loads: Instructions that load 16 bytes or more from global memory.
        ptxas: Version of the assembler.
    """

    name: str
    config: str
    is_default: bool
    sm: int
    entry: str
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    shared_bytes: int
    arguments: Sequence[Sequence[str]]
    hidden_pointers: int
    registers: int
    spill_bytes: int
    tensor_core_instruction: str | None
    wide_loads: int
    ptxas: str

    @property
    def file(self) -> str:
        """The cubin's path in the folder."""
        return f"sm_{self.sm}/{self.name}.{self.config}.cubin"

    @property
    def occupancy(self) -> float:
        """The part of a multiprocessor's warps that it keeps resident; 0: it cannot run."""
        return ARCHITECTURES[self.sm].occupancy(
            num_warps=self.num_warps, registers=self.registers, shared_bytes=self.shared_bytes
        )


@dataclass(frozen=True)
class KernelFolder:
    """A folder of compiled kernels whose manifest has been read.

    Attributes:
        path: The folder.
        triton: Version of the compiler.
        kernels: One record per cubin.
        files: The fingerprint of every cubin by its path in the folder.
        source: Where the cubins are read.
    """

    path: Path
    triton: str
    kernels: tuple[CompiledKernel, ...]
    files: Mapping[str, Mapping[str, Any]]
    source: FolderFiles = field(compare=False, repr=False)

    def cubin(self, kernel: CompiledKernel) -> bytes:
        """The bytes of a cubin, verified.

        Raises:
            ArtifactError: the file is missing, has changed, or cannot be read; or another folder
                of kernels has taken the place of this one.
        """
        with reading(self.path, KIND):
            return self.source.read_bytes(kernel.file)


def write_kernel_folder(
    path: Path | str, *, triton: str, cubins: Sequence[tuple[CompiledKernel, bytes]]
) -> Path:
    """The absolute path of a new folder of kernels, complete on disk.

    Written whole or not at all; a folder of kernels that stands at `path` is replaced. The same
    kernels give the same bytes.

    Args:
        path: The folder.
        triton: Version of the compiler.
        cubins: The kernels.

    Raises:
        InvalidInputError: `path` is no path.
        ArtifactError: `path` is a file, or a folder that holds something else, or cannot be
            written.
    """
    with new_folder_beside(path, KIND) as (scratch, target):
        for kernel, cubin in cubins:
            file = scratch / kernel.file
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(cubin)
        content = {
            "schema": SCHEMA_VERSION,
            "triton": triton,
            "kernels": [asdict(kernel) for kernel, _ in cubins],
            "files": {kernel.file: fingerprint(scratch / kernel.file) for kernel, _ in cubins},
        }
        write_manifest(content, scratch)
        make_readable(scratch)
        replace_folder(scratch, target)
    return target


def read_kernel_folder(path: Path | str) -> KernelFolder:
    """The folder of kernels at `path`; its cubins are verified when they are loaded.

    Raises:
        InvalidInputError: `path` is no path.
        ArtifactError: it is missing, damaged, or of another schema.
    """
    folder = read_whole(as_path(path, KIND), KIND, _read_kernel_folder)
    folder.source.release()
    return folder


def _read_kernel_folder(files: FolderFiles) -> KernelFolder:
    content = files.manifest()
    kernels = tuple(CompiledKernel(**record) for record in content["kernels"])
    if unlisted := {kernel.file for kernel in kernels} - content["files"].keys():
        raise ArtifactError(
            f"{files.folder / MANIFEST_FILE}: does not list {min(unlisted)!r}; {KIND.again}"
        )
    files.describe(content["files"])
    return KernelFolder(files.folder, content["triton"], kernels, content["files"], files)


def split_type(argument: str) -> tuple[str, bool]:
    """(Triton's type, whether a multiple of 16 is promised) of e.g. "*fp32:16"."""
    kind, _, divisor = argument.partition(":")
    return kind, divisor == str(DIVISIBILITY)
