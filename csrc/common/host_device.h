// Scalar maths that the CPU and the CUDA kernels share.
#pragma once

// Before an inline function of plain arithmetic: compiled for both.
#ifdef __CUDACC__
#define MMAD_FAST_HOST_DEVICE __host__ __device__
#else
#define MMAD_FAST_HOST_DEVICE
#endif
