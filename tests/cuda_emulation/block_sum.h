// The sum of a block's 256 values. Before it is included BARRIER_BETWEEN_STEPS is defined: as
// __syncthreads(), or as nothing, which is a fault that the emulation must find.
#include "common/cuda_check.h"

namespace {

constexpr int kThreads = 256;

__global__ void reduce(const float* values, float* sum) {
  __shared__ float parts[kThreads];
  parts[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    BARRIER_BETWEEN_STEPS();
  }
  if (threadIdx.x == 0) *sum = parts[0];
}

float sum_of(const float* values) {
  float sum = 0;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(kThreads);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, reduce, values, &sum));
  return sum;
}

}  // namespace
