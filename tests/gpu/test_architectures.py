"""Occupancy, compared with NVIDIA's own calculation (cuda_occupancy.h of the CUDA toolkit)."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmad_fast.gpu.architectures import ARCHITECTURES, KIB, REGISTERS_PER_SM
from mmad_fast.measure.cuda_resources import find_nvcc

WARPS = (1, 2, 3, 4, 7, 8, 16, 32)
REGISTERS = (1, 24, 32, 40, 64, 65, 96, 128, 168, 200, 255)
SHARED = (0, 1, 128, 1024, 4095, 16384, 33000, 49152, 65536, 100000, 166000, 232448, 300000)

PROGRAM = r"""
#include <cstdio>
#include <climits>
#include "cuda_occupancy.h"
int main() {
  int major, minor, warps_per_sm, reserved, warps, registers, shared, per_sm, per_block;
  while (std::scanf("%d %d %d %d %d %d %d %d %d", &major, &minor, &warps_per_sm, &reserved, &per_sm,
                    &per_block, &warps, &registers, &shared) == 9) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = warps_per_sm * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = REGISTERS;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = per_sm;
    device.numSms = 1;
    device.sharedMemPerBlockOptin = per_block;
    device.reservedSharedMemPerBlock = reserved;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = per_block;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    const int code = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state,
                                                             warps * 32, shared);
    std::printf("%d\n", code ? -code : result.activeBlocksPerMultiprocessor);
  }
}
"""


def _header() -> Path | None:
    nvcc = find_nvcc()
    folders = [] if nvcc is None else [nvcc.resolve().parents[1] / "include"]
    triton = find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "include")
    return next((f for f in folders if (f / "cuda_occupancy.h").is_file()), None)


def test_occupancy_is_what_nvidia_computes(tmp_path: Path) -> None:
    include, compiler = _header(), shutil.which("c++") or shutil.which("g++")
    if include is None or compiler is None:
        pytest.skip("needs a C++ compiler, and cuda_occupancy.h of nvcc or triton")
    (tmp_path / "occupancy.cpp").write_text(PROGRAM)
    program = tmp_path / "occupancy"
    flags = [f"-I{include}", f"-DREGISTERS={REGISTERS_PER_SM}", "-w"]
    subprocess.run([compiler, *flags, "-o", program, tmp_path / "occupancy.cpp"], check=True)
    cases = list(itertools.product(ARCHITECTURES.values(), WARPS, REGISTERS, SHARED))
    lines = [
        f"{a.sm // 10} {a.sm % 10} {a.warps_per_sm} {a.shared_reserved} "
        f"{a.shared_per_sm_kib * KIB} {a.shared_per_block} {warps} {registers} {shared}"
        for a, warps, registers, shared in cases
    ]
    text = "\n".join(lines)
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    wanted = [int(line) for line in done.stdout.split()]
    found = [
        a.resident_blocks(num_warps=warps, registers=registers, shared_bytes=shared)
        for a, warps, registers, shared in cases
    ]
    assert len(wanted) == len(cases)
    different = [(line, w, f) for line, w, f in zip(lines, wanted, found, strict=True) if w != f]
    assert different == []
    assert len(set(found)) > 10


def test_occupancy_is_the_part_of_the_warps() -> None:
    ada = ARCHITECTURES[89]
    assert ada.occupancy(num_warps=4, registers=32, shared_bytes=0) == 1.0
    assert ada.occupancy(num_warps=4, registers=128, shared_bytes=0) == 16 / 48
    assert ada.occupancy(num_warps=4, registers=32, shared_bytes=99 * KIB) == 4 / 48
    assert ada.occupancy(num_warps=4, registers=32, shared_bytes=99 * KIB + 1) == 0
