// The three nearest centres of each point, and their weights.
//
// A thread has one point. A block loads the centres tile by tile into shared memory, once for all
// of its points, and every thread inserts them, in ascending order, into the three nearest in its
// registers: an equal distance does not displace, so ties go to the lowest index. All lanes of a
// warp read the same centre at once, which shared memory serves as one broadcast of 16 bytes.
//
// Launch shape: ceil(N / 128) blocks of 128 threads. Memory layout: rows of three floats in and
// out; a tile is 256 float4. Precision: float32 by direct differences, each operation rounded on
// its own, as on the CPU.
// Any content is safe: a distance that is NaN or infinite is never inserted, and the places that no
// centre has taken keep the indices 0, 1, 2 and an infinite distance, that is the weight 0.
#include <cmath>

#include "common/cuda_check.h"
#include "inverse_distance_interpolation/op.h"

namespace mmad_fast {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 256;
constexpr float kEpsilon = 1e-8f;  // square metres

struct ThreeNearest {
  float distance[3] = {INFINITY, INFINITY, INFINITY};  // squared, ascending
  int index[3] = {0, 1, 2};
};

__device__ __forceinline__ float squared_distance(float x, float y, float z, const float4& center) {
  const float dx = __fsub_rn(x, center.x), dy = __fsub_rn(y, center.y), dz = __fsub_rn(z, center.z);
  return __fadd_rn(__fadd_rn(__fmul_rn(dx, dx), __fmul_rn(dy, dy)), __fmul_rn(dz, dz));
}

// A centre that is nearer than the third.
__device__ __forceinline__ void insert(ThreeNearest& nearest, float distance, int index) {
  const bool is_first = distance < nearest.distance[0], is_second = distance < nearest.distance[1];
  nearest.distance[2] = is_second ? nearest.distance[1] : distance;
  nearest.index[2] = is_second ? nearest.index[1] : index;
  nearest.distance[1] = is_first ? nearest.distance[0] : is_second ? distance : nearest.distance[1];
  nearest.index[1] = is_first ? nearest.index[0] : is_second ? index : nearest.index[1];
  nearest.distance[0] = is_first ? distance : nearest.distance[0];
  nearest.index[0] = is_first ? index : nearest.index[0];
}

__device__ __forceinline__ void write(const ThreeNearest& nearest, int64_t* indices,
                                      float* weights) {
  float weight[3];
  for (int k = 0; k < 3; ++k) {
    weight[k] = __fdiv_rn(1.0f, __fadd_rn(nearest.distance[k], kEpsilon));
  }
  const float sum = __fadd_rn(__fadd_rn(weight[0], weight[1]), weight[2]);
  for (int k = 0; k < 3; ++k) {
    indices[k] = nearest.index[k];
    weights[k] = __fdiv_rn(weight[k], sum);
  }
}

__global__ void __launch_bounds__(kThreads)
    three_nearest_centers(const float* __restrict__ points, int64_t num_points,
                          const float* __restrict__ centers, int num_centers,
                          int64_t* __restrict__ indices, float* __restrict__ weights) {
  __shared__ float4 tile[kTile];
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  // The threads behind the last point help to load.
  const float* point = points + 3 * (n < num_points ? n : num_points - 1);
  const float x = point[0], y = point[1], z = point[2];
  ThreeNearest nearest;
  for (int begin = 0; begin < num_centers; begin += kTile) {
    const int count = num_centers - begin < kTile ? num_centers - begin : kTile;
    __syncthreads();  // everyone has done with the tile before
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const float* center = centers + 3 * static_cast<int64_t>(begin + i);
      tile[i] = make_float4(center[0], center[1], center[2], 0.0f);
    }
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      const float distance = squared_distance(x, y, z, tile[i]);
      if (distance < nearest.distance[2]) insert(nearest, distance, begin + i);
    }
  }
  if (n < num_points) write(nearest, indices + 3 * n, weights + 3 * n);
}

}  // namespace

void inverse_distance_weights(const float* points, int64_t num_points, const float* centers,
                              int64_t num_centers, int64_t* indices, float* weights, void* stream) {
  if (num_points == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((num_points + kThreads - 1) / kThreads));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, three_nearest_centers, points, num_points,
                                          centers, static_cast<int>(num_centers), indices,
                                          weights));
}

}  // namespace cuda
}  // namespace mmad_fast
