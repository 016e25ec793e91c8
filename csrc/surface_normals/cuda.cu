// Surface normals on a CUDA device: one thread per point.
//
// A thread adds up its neighbours' coordinates and their products in the order of the row and
// solves the 3 x 3 eigenproblem in closed form (normal.h), all in float64 and without fused
// multiply-adds: the arithmetic of the CPU kernel, since rounding decides where normals are
// opposite.
//
// Launch: 128 threads per block; no shared memory, no workspace. Neighbours are read by row, each
// thread its own: a line of 128 bytes serves 32 steps.
#include <cmath>
#include <cstdint>

#include "common/cuda_check.h"
#include "surface_normals/normal.h"
#include "surface_normals/op.h"

namespace mmad_fast {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMinNeighbors = 3;

// Mean of products minus product of means of the first `count` neighbours, as the CPU kernel has
// it.
__device__ __forceinline__ SymmetricMatrix covariance(const float* points, const int32_t* neighbors,
                                                      int count) {
  double sum_x = 0, sum_y = 0, sum_z = 0;
  SymmetricMatrix products{0, 0, 0, 0, 0, 0};
  for (int k = 0; k < count; ++k) {
    const float* point = points + 3 * static_cast<size_t>(neighbors[k]);
    const double x = point[0], y = point[1], z = point[2];
    sum_x += x;
    sum_y += y;
    sum_z += z;
    products.xx += x * x;
    products.xy += x * y;
    products.xz += x * z;
    products.yy += y * y;
    products.yz += y * z;
    products.zz += z * z;
  }
  const double x = sum_x / count, y = sum_y / count, z = sum_z / count;
  return {products.xx / count - x * x, products.xy / count - x * y, products.xz / count - x * z,
          products.yy / count - y * y, products.yz / count - y * z, products.zz / count - z * z};
}

template <typename Normal>
__global__ void __launch_bounds__(kThreads)
    fit_normals(const float* __restrict__ points, int64_t num_points, NeighborRows neighbors,
                bool faces_camera, Normal* __restrict__ normals) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= num_points) return;
  const int count = neighbors.count(n);
  Direction normal{0, 0, 1};
  if (count >= kMinNeighbors && neighbors.squared_row(n)[count - 1] > 0) {
    normal = smallest_direction(covariance(points, neighbors.row(n), count));
  }
  const float* point = points + 3 * n;
  if (faces_camera && normal.x * point[0] + normal.y * point[1] + normal.z * point[2] > 0) {
    normal = {-normal.x, -normal.y, -normal.z};
  }
  normals[3 * n] = static_cast<Normal>(normal.x);
  normals[3 * n + 1] = static_cast<Normal>(normal.y);
  normals[3 * n + 2] = static_cast<Normal>(normal.z);
}

}  // namespace

template <typename Normal>
void surface_normals(const float* points, int64_t num_points, const NeighborRows& neighbors,
                     bool faces_camera, Normal* normals, void* stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((num_points + kThreads - 1) / kThreads));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, fit_normals<Normal>, points, num_points,
                                          neighbors, faces_camera, normals));
}

template void surface_normals(const float*, int64_t, const NeighborRows&, bool, float*, void*);
template void surface_normals(const float*, int64_t, const NeighborRows&, bool, double*, void*);

}  // namespace cuda
}  // namespace mmad_fast
