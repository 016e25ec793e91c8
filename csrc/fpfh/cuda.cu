// FPFH on a CUDA device, in two passes that count in integers, so that no order shows.
//
// 1. count_pairs, one warp per point, whose lanes are neighbours: the bins of each pair
// (pair_bins.h)
//    in float64 and without fused multiply-adds, as the CPU kernel finds them, counted in shared
//    memory, written as (N, 33) numbers of 16 bits.
// 2. weigh_histograms, one thread per point and bin of a histogram, for all three histograms: the
//    neighbours' counts, weighted by 1 / squared distance, one neighbour after the other. Each
//    neighbour has a pair, since it is a neighbour's neighbour, and so its histogram has the sum
//    100: the sum of the weights is what the sum of the weighted bins would give. float32: all
//    terms are positive. Weights are relative to that of the nearest neighbour, so that none
//    overflows.
//
// Launch: 4 warps, or 32 points with 11 threads each, per block. Workspace: the counts, and the
// number of pairs of each point, 34 x 2 bytes per point.
#include <cmath>
#include <cstdint>

#include "common/cuda_check.h"
#include "fpfh/op.h"
#include "fpfh/pair_bins.h"

namespace mmad_fast {
namespace cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarpsPerBlock = 4;
constexpr int kMinBlocks = 8;  // 64 registers; without it the compiler spills to have 48 on some
constexpr int kPointsPerBlock = 32;

template <typename Normal>
__global__ void __launch_bounds__(kWarpsPerBlock* kLanes, kMinBlocks)
    count_pairs(const float* __restrict__ points, const Normal* __restrict__ normals,
                int64_t num_points, NeighborRows neighbors, uint16_t* __restrict__ histograms,
                uint16_t* __restrict__ num_pairs) {
  __shared__ int shared_counts[kWarpsPerBlock][kNumChannels];
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (n >= num_points) return;
  int* const counts = shared_counts[warp];
  for (int bin = lane; bin < kNumChannels; bin += kLanes) counts[bin] = 0;
  __syncwarp();
  const int count = neighbors.count(n);
  const int32_t* row = neighbors.row(n);
  const float* point = points + 3 * n;
  const double normal[3] = {normals[3 * n], normals[3 * n + 1], normals[3 * n + 2]};
  for (int k = 1 + lane; k < count; k += kLanes) {
    const int64_t at = 3 * static_cast<int64_t>(row[k]);
    const PairBins bins = pair_bins(
        static_cast<double>(points[at]) - point[0], static_cast<double>(points[at + 1]) - point[1],
        static_cast<double>(points[at + 2]) - point[2], normal[0], normal[1], normal[2],
        normals[at], normals[at + 1], normals[at + 2]);
    atomicAdd(&counts[bins.theta], 1);
    atomicAdd(&counts[kNumBins + bins.alpha], 1);
    atomicAdd(&counts[2 * kNumBins + bins.phi], 1);
  }
  __syncwarp();
  for (int bin = lane; bin < kNumChannels; bin += kLanes) {
    histograms[n * kNumChannels + bin] = static_cast<uint16_t>(counts[bin]);
  }
  if (lane == 0) num_pairs[n] = static_cast<uint16_t>(count > 1 ? count - 1 : 0);
}

__global__ void __launch_bounds__(kPointsPerBlock* kNumBins)
    weigh_histograms(int64_t num_points, NeighborRows neighbors,
                     const uint16_t* __restrict__ histograms,
                     const uint16_t* __restrict__ num_pairs, float* __restrict__ features) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kPointsPerBlock + threadIdx.x / kNumBins;
  if (n >= num_points) return;
  const int bin = threadIdx.x % kNumBins;
  const int count = 1 + num_pairs[n];
  const int32_t* row = neighbors.row(n);
  const float* squared_distances = neighbors.squared_row(n);
  float sums[kNumFeatures] = {0, 0, 0};
  float sum_of_weights = 0, nearest = 0;
  for (int k = 1; k < count; ++k) {
    const float squared_distance = squared_distances[k];
    if (squared_distance == 0) continue;
    if (nearest == 0) nearest = squared_distance;
    const int64_t neighbor = row[k];
    const float weight = nearest / squared_distance;
    sum_of_weights += weight;
    for (int feature = 0; feature < kNumFeatures; ++feature) {
      const float counted = histograms[neighbor * kNumChannels + feature * kNumBins + bin];
      sums[feature] += weight / static_cast<float>(num_pairs[neighbor]) * counted;
    }
  }
  const float percent = num_pairs[n] == 0 ? 0.0f : 100.0f / static_cast<float>(num_pairs[n]);
  for (int feature = 0; feature < kNumFeatures; ++feature) {
    const int64_t at = n * kNumChannels + feature * kNumBins + bin;
    const float around = sum_of_weights == 0 ? 0.0f : 100.0f * sums[feature] / sum_of_weights;
    features[at] = percent * static_cast<float>(histograms[at]) + around;
  }
}

cudaLaunchConfig_t launch_config(int64_t num_points, int points_per_block, int threads,
                                 void* stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(static_cast<unsigned>((num_points + points_per_block - 1) / points_per_block));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  return config;
}

}  // namespace

int64_t fpfh_workspace(int64_t num_points) {
  return num_points * (kNumChannels + 1) * static_cast<int64_t>(sizeof(uint16_t));
}

template <typename Normal>
void fpfh(const float* points, const Normal* normals, int64_t num_points,
          const NeighborRows& neighbors, float* features, void* workspace, void* stream) {
  uint16_t* histograms = static_cast<uint16_t*>(workspace);
  uint16_t* num_pairs = histograms + num_points * kNumChannels;
  const cudaLaunchConfig_t per_warp =
      launch_config(num_points, kWarpsPerBlock, kWarpsPerBlock * kLanes, stream);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&per_warp, count_pairs<Normal>, points, normals,
                                          num_points, neighbors, histograms, num_pairs));
  const cudaLaunchConfig_t per_bin =
      launch_config(num_points, kPointsPerBlock, kPointsPerBlock * kNumBins, stream);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&per_bin, weigh_histograms, num_points, neighbors,
                                          static_cast<const uint16_t*>(histograms),
                                          static_cast<const uint16_t*>(num_pairs), features));
}

template void fpfh(const float*, const float*, int64_t, const NeighborRows&, float*, void*, void*);
template void fpfh(const float*, const double*, int64_t, const NeighborRows&, float*, void*, void*);

}  // namespace cuda
}  // namespace mmad_fast
