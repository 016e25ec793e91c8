"""Builds extension modules of CUDA sources for the host, with g++ and the emulation of this folder.

Objects and modules lie under build/cuda_emulation, named by the hash of all that went into them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

EMULATION = Path(__file__).parent
ROOT = EMULATION.parents[1]
CACHE = ROOT / "build" / "cuda_emulation"
DOUBLES = tuple(
    EMULATION / name for name in ("doubles.cu", "missing_barrier.cu", "doubles_bindings.cpp")
)
RUNTIME = tuple(
    EMULATION / name
    for name in ("runtime.cpp", "runtime_api.cpp", "races.cpp", "fiber.cpp", "controls.cpp")
)
# They only pass arguments on; compiling them with sanitizers would take longer than all the rest.
BINDINGS = ("cuda_bindings.cpp", "controls.cpp", "doubles_bindings.cpp")
KERNELS_MODULE = "_emulated_cuda_kernels"
DOUBLES_MODULE = "_cuda_doubles"


def kernel_sources() -> list[Path]:
    """The CUDA half of csrc, with its bindings."""
    return [*sorted((ROOT / "csrc").glob("*/*.cu")), ROOT / "csrc" / "cuda_bindings.cpp"]


def refusal() -> str | None:
    """None if modules can be built here, else why not."""
    if shutil.which("g++") is None:
        return "the emulation of CUDA is built by g++, which is not on the PATH"
    if importlib.util.find_spec("pybind11") is None:
        return "the emulation of CUDA needs pybind11: pip install pybind11"
    return None


def build(name: str, sources: Sequence[Path], *, sanitize: bool = False) -> Path:
    """The path of the extension module `name`, built if anything has changed.

    Args:
        name: The module's name, as its bindings say it.
        sources: .cu and .cpp files; those of the emulation are added.
        sanitize: With AddressSanitizer and UndefinedBehaviorSanitizer: a finding ends the process,
            which must have libasan preloaded. Without, races in shared memory are looked for.

    Raises:
        RuntimeError: the compiler's words, if it fails.
    """
    headers = _headers_digest()

    def compiled(source: Path) -> Path:
        return _compile(source, _flags(source, sanitize), headers)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*sources, *RUNTIME]))
    digest = hashlib.sha256("".join(path.name for path in objects).encode()).hexdigest()[:16]
    module = CACHE / digest / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.is_file():
        sanitizers = ["-fsanitize=address,undefined"] if sanitize else []
        module.parent.mkdir(exist_ok=True)
        _run(["g++", "-shared", *sanitizers, *map(str, objects)], module)
    return module


def load(module: Path) -> ModuleType:
    """The module of a path that `build` returned."""
    name = module.name.split(".", 1)[0]
    spec = importlib.util.spec_from_file_location(name, module)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module} is no extension module")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def sanitizer_environment() -> dict[str, str]:
    """What a process needs in its environment to load a module with sanitizers."""
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "MMAD_FAST_EMULATION_SANITIZE": "1",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks at exit
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def _flags(source: Path, sanitize: bool) -> list[str]:
    import pybind11

    instrumentation = []
    if sanitize and source.name not in BINDINGS:
        instrumentation = [
            *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
            "-fsanitize-sections=emulated_shared",
        ]
    elif not sanitize and source.suffix == ".cu":
        # Only its hooks: they are races.cpp's.
        instrumentation = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
    return [
        *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer"),
        *("-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"),
        *instrumentation,
        f"-DMMAD_FAST_CUDA_MODULE={KERNELS_MODULE}",
        f"-I{EMULATION / 'include'}",
        f"-I{ROOT / 'csrc'}",
        *(f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))),
        *("-include", "cuda_runtime.h"),
    ]


def _headers_digest() -> str:
    """Changes with any header, and with the compiler and the interpreter."""
    digest = hashlib.sha256()
    compiler = subprocess.run(["g++", "--version"], check=True, capture_output=True)
    digest.update(compiler.stdout + sys.version.encode())
    for folder in (ROOT / "csrc", EMULATION):
        for header in sorted(folder.rglob("*.h")):
            digest.update(str(header.relative_to(ROOT)).encode() + header.read_bytes())
    # The bindings ask which kernels there are.
    digest.update(str([source.parent.name for source in kernel_sources()]).encode())
    return digest.hexdigest()


def _compile(source: Path, flags: list[str], headers: str) -> Path:
    folder = CACHE / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{headers}{flags}{source}".encode() + source.read_bytes())
    target = folder / f"{source.parent.name}.{source.stem}.{digest.hexdigest()[:16]}.o"
    if not target.is_file():
        _run(["g++", *flags, "-x", "c++", "-c", str(source)], target)
    return target


def _run(command: list[str], target: Path) -> None:
    """Runs a compiler; the target appears whole or not at all."""
    # A sanitizer that watches this process need not watch the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / target.name
        done = subprocess.run(
            [*command, "-o", str(output)], capture_output=True, text=True, env=environment
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        os.replace(output, target)
