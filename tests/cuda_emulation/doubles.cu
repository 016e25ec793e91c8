#include <cooperative_groups.h>

#include "common/cuda_check.h"
#include "doubles.h"

#define BARRIER_BETWEEN_STEPS() __syncthreads()
#include "block_sum.h"

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

cudaLaunchConfig_t shape(int blocks, int threads, size_t dynamic_bytes = 0) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = dynamic_bytes;
  return config;
}

__global__ void wait_for_each_other(Barriers how) {
  const bool is_second_half = threadIdx.x >= 32;
  if (how == Barriers::kLeft && is_second_half) return;
  if (how == Barriers::kOther && is_second_half) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void wait_together() { __syncthreads(); }

__global__ void write_one(int at, int read_at, float* found) {
  MMAD_FAST_DYNAMIC_SHARED(float, shared);
  if (threadIdx.x == 0) shared[at] = 1;
  __syncthreads();
  if (threadIdx.x == 1) *found = shared[read_at];
}

__global__ void write_one_static(int at, int read_at, float* found) {
  __shared__ float shared[5];
  if (threadIdx.x == 0) shared[at] = 1;
  __syncthreads();
  if (threadIdx.x == 1) *found = shared[read_at];
}

__global__ void shuffle(unsigned mask, unsigned present) {
  if (present >> threadIdx.x & 1) __shfl_xor_sync(mask, static_cast<int>(threadIdx.x), 1);
}

__global__ void try_warp_operations(const int* values, int* out) {
  const int t = threadIdx.x, value = values[t], stride = blockDim.x;
  out[t] = __shfl_sync(kAllLanes, value, (t + 3) % 32);
  out[t + stride] = __shfl_down_sync(kAllLanes, value, 5);
  out[t + 2 * stride] = __shfl_up_sync(kAllLanes, value, 1, 8);
  out[t + 3 * stride] = __shfl_xor_sync(kAllLanes, value, 16);
  out[t + 4 * stride] = static_cast<int>(__ballot_sync(kAllLanes, value > 2));
  out[t + 5 * stride] = static_cast<int>(__match_any_sync(kAllLanes, value));
  out[t + 6 * stride] = __any_sync(kAllLanes, value > 8) + 2 * __all_sync(kAllLanes, value >= 0);
  out[t + 7 * stride] = __syncthreads_count(value > 2) + 1000 * __syncthreads_or(value > 8) +
                        10000 * __syncthreads_and(value >= 0);
}

__global__ void count(bool is_careful, int* counter) {
  if (is_careful) {
    atomicAdd(counter, 1);
  } else {
    const int before = *counter;
    atomicExch(counter, before + 1);
  }
}

__global__ void count_together(bool is_atomic, int* out) {
  __shared__ int counter;
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  if (is_atomic) {
    atomicAdd(&counter, 1);
  } else {
    counter += 1;
  }
  __syncthreads();
  if (threadIdx.x == 0) *out = counter;
}

__global__ void pass_on(bool has_syncwarp, int* out) {
  __shared__ int values[32];
  const int lane = threadIdx.x;
  for (int step = 0; step < 2; ++step) {
    values[lane] = lane + step;
    if (has_syncwarp) {
      __syncwarp();
    } else {
      __any_sync(kAllLanes, 1);  // orders the lanes and not their memory
    }
    out[lane] = values[(lane + 1) % 32];
    __syncwarp();
  }
}

__global__ void exchange(bool waits, int* out) {
  MMAD_FAST_DYNAMIC_SHARED(int, own);
  const auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) *own = static_cast<int>(cluster.block_rank()) + 1;
  if (waits) cluster.sync();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank) {
      sum += *cluster.map_shared_rank(own, rank);
    }
    out[cluster.block_rank()] = sum;
  }
  if (waits) cluster.sync();
}

__global__ void take_a_number(int* counter, int* out) { out[blockIdx.x] = atomicAdd(counter, 1); }

__global__ void add_up(int steps, long long* sum) {
  __shared__ int shared[512];
  int total = 0;
  for (int step = 0; step < steps; ++step) {
    shared[threadIdx.x] = step;
    __syncthreads();
    total += shared[(threadIdx.x + 1) % 512];
    __syncthreads();
  }
  if (threadIdx.x == 0) *sum = total;
}

}  // namespace

float block_sum(const float* values) { return sum_of(values); }

void meet(Barriers how) {
  const auto config = shape(1, 64);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(
      &config, how == Barriers::kMet ? +[](Barriers) { wait_together(); } : wait_for_each_other,
      how));
}

float write_shared(int count, int at, int read_at) {
  float found = 0;
  const auto config = shape(1, 32, count * sizeof(float));
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, write_one, at, read_at, &found));
  return found;
}

float write_static_shared(int at, int read_at) {
  float found = 0;
  const auto config = shape(1, 32);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, write_one_static, at, read_at, &found));
  return found;
}

void shuffle_among(unsigned mask, unsigned present) {
  const auto config = shape(1, 32);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, shuffle, mask, present));
}

void warp_operations(const int* values, int* out) {
  const auto config = shape(1, 64);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, try_warp_operations, values, out));
}

int count_up(bool is_careful) {
  int counter = 0;
  const auto config = shape(2, 32);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, count, is_careful, &counter));
  return counter;
}

int count_in_shared(bool is_atomic) {
  int counter = 0;
  const auto config = shape(1, 64);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, count_together, is_atomic, &counter));
  return counter;
}

void pass_around(bool has_syncwarp, int* out) {
  const auto config = shape(1, 32);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, pass_on, has_syncwarp, out));
}

void sum_over_cluster(int blocks, bool waits, int* out) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  auto config = shape(blocks, 32, sizeof(int));
  config.attrs = &attribute;
  config.numAttrs = 1;
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, exchange, waits, out));
}

void order_of_blocks(int blocks, int* out) {
  int counter = 0;
  const auto config = shape(blocks, 1);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, take_a_number, &counter, out));
}

int64_t many_barriers(int steps) {
  long long sum = 0;
  const auto config = shape(1, 512);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, add_up, steps, &sum));
  return sum;
}

void launch_with(int threads, int64_t dynamic_bytes, int64_t allowed_bytes) {
  if (allowed_bytes > 0) {
    MMAD_FAST_CHECK_CUDA(cudaFuncSetAttribute(wait_together,
                                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              static_cast<int>(allowed_bytes)));
  }
  const auto config = shape(1, threads, static_cast<size_t>(dynamic_bytes));
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, wait_together));
}
