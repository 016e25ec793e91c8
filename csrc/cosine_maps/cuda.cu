// Cosine maps on a CUDA device. Per level four launches:
// 1. write_weights, once per axis: of each place of the result the weights of the cells, upsampling
//    and Gaussian in one; a thread has one place.
// 2. measure_distances: a block has 32 pixels, a warp every 16th channel of them, so that a warp
//    reads 128 consecutive bytes of a channel; the 16 sums are added in shared memory.
// 3. combine_rows: weights (H, S) times distances (H, W); a thread has one value.
// 4. add_columns: that times weights (W, S), added to the result; a thread has one pixel, and what
// a
//    warp shares it reads as a broadcast.
//
// Launch: 512 threads per block in 2, 128 elsewhere. The workspace holds the weights, distances and
// combined rows of one level. Precision: float64 throughout, products not contracted; the memory of
// the features bounds the second, and only a level is rounded to float32 when it is added.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/cuda_check.h"
#include "cosine_maps/op.h"
#include "cosine_maps/smoothing.h"

namespace mmad_fast {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 32;
constexpr int kParts = 16;  // of a pixel's channels

// weights (num_cells, size).
__global__ void __launch_bounds__(kThreads)
    write_weights(GaussianTaps taps, int64_t num_cells, int64_t size, bool align_corners,
                  double* __restrict__ weights) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= size) return;
  for (int64_t cell = 0; cell < num_cells; ++cell) weights[cell * size + place] = 0;
  for (int k = -taps.radius; k <= taps.radius; ++k) {
    const CellPair pair = cells_of(mirrored(place + k, size), size, num_cells, align_corners);
    const double weight = taps.weights[k < 0 ? -k : k];
    weights[pair.lower * size + place] += weight * (1 - pair.upper_weight);
    weights[pair.upper * size + place] += weight * pair.upper_weight;
  }
}

// distances (num_pixels,) of maps (channels, num_pixels).
__global__ void __launch_bounds__(kLanes* kParts)
    measure_distances(const float* __restrict__ target, const float* __restrict__ restored,
                      int64_t channels, int64_t num_pixels, double* __restrict__ distances) {
  __shared__ double parts[3][kParts][kLanes];
  const int lane = static_cast<int>(threadIdx.x % kLanes);
  const int part = static_cast<int>(threadIdx.x / kLanes);
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * kLanes + lane;
  double product = 0, target_square = 0, restored_square = 0;
  if (pixel < num_pixels) {
    for (int64_t c = part; c < channels; c += kParts) {
      const double a = target[c * num_pixels + pixel], b = restored[c * num_pixels + pixel];
      product += a * b;
      target_square += a * a;
      restored_square += b * b;
    }
  }
  parts[0][part][lane] = product;
  parts[1][part][lane] = target_square;
  parts[2][part][lane] = restored_square;
  __syncthreads();
  if (part != 0 || pixel >= num_pixels) return;
  for (int other = 1; other < kParts; ++other) {
    product += parts[0][other][lane];
    target_square += parts[1][other][lane];
    restored_square += parts[2][other][lane];
  }
  distances[pixel] = cosine_distance(product, target_square, restored_square);
}

// combined (size, width) = weights (height, size) transposed times distances (height, width).
__global__ void __launch_bounds__(kThreads)
    combine_rows(const double* __restrict__ weights, const double* __restrict__ distances,
                 int64_t height, int64_t width, int64_t size, double* __restrict__ combined) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size * width) return;
  const int64_t row = at / width, column = at % width;
  double sum = 0;
  for (int64_t cell = 0; cell < height; ++cell) {
    sum += weights[cell * size + row] * distances[cell * width + column];
  }
  combined[at] = sum;
}

// map (size, size) = combined (size, width) times weights (width, size), or that is added.
__global__ void __launch_bounds__(kThreads)
    add_columns(const double* __restrict__ weights, const double* __restrict__ combined,
                int64_t width, int64_t size, bool is_first, float* __restrict__ map) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size * size) return;
  const int64_t row = at / size, column = at % size;
  double sum = is_first ? 0.0 : static_cast<double>(map[at]);
  for (int64_t cell = 0; cell < width; ++cell) {
    sum += combined[row * width + cell] * weights[cell * size + column];
  }
  map[at] = static_cast<float>(sum);
}

cudaLaunchConfig_t launch_config(int64_t count, int per_block, int threads, void* stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((count + per_block - 1) / per_block));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  return config;
}

// Numbers in the workspace of one level.
int64_t workspace_of(const CosineLevel& level, int64_t size) {
  return size * (level.height + level.width) + level.num_pixels() + size * level.width;
}

}  // namespace

int64_t cosine_maps_workspace(const std::vector<CosineLevel>& levels, int64_t size) {
  int64_t largest = 0;
  for (const CosineLevel& level : levels) largest = std::max(largest, workspace_of(level, size));
  return largest * static_cast<int64_t>(sizeof(double));
}

void cosine_maps(const std::vector<CosineLevel>& levels, int64_t size, double sigma,
                 bool align_corners, float* map, void* workspace, void* stream) {
  const GaussianTaps taps = gaussian_taps(sigma);
  const cudaLaunchConfig_t per_place = launch_config(size, kThreads, kThreads, stream);
  bool is_first = true;
  for (const CosineLevel& level : levels) {
    double* down = static_cast<double*>(workspace);
    double* right = down + size * level.height;
    double* distances = right + size * level.width;
    double* combined = distances + level.num_pixels();
    MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&per_place, write_weights, taps, level.height, size,
                                            align_corners, down));
    MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&per_place, write_weights, taps, level.width, size,
                                            align_corners, right));
    const cudaLaunchConfig_t per_pixel =
        launch_config(level.num_pixels(), kLanes, kLanes * kParts, stream);
    MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&per_pixel, measure_distances, level.target,
                                            level.restored, level.channels, level.num_pixels(),
                                            distances));
    const cudaLaunchConfig_t per_value =
        launch_config(size * level.width, kThreads, kThreads, stream);
    MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(
        &per_value, combine_rows, static_cast<const double*>(down),
        static_cast<const double*>(distances), level.height, level.width, size, combined));
    const cudaLaunchConfig_t per_result = launch_config(size * size, kThreads, kThreads, stream);
    MMAD_FAST_CHECK_CUDA(
        cudaLaunchKernelEx(&per_result, add_columns, static_cast<const double*>(right),
                           static_cast<const double*>(combined), level.width, size, is_first, map));
    is_first = false;
  }
}

}  // namespace cuda
}  // namespace mmad_fast
