// Surface normals on the CPU: per point the covariance of its neighbours, in float64 and
// in the order of the row, then its smallest direction. Points are shared among the threads.
#include "common/parallel.h"
#include "surface_normals/normal.h"
#include "surface_normals/op.h"

namespace mmad_fast {
namespace {

constexpr int kMinNeighbors = 3;
constexpr int64_t kGrain = 256;

// Mean of products minus product of means, as Open3D has it: float64 holds what float32 coordinates
// differ by, and the rounding that is left decides as it does there where normals are opposite.
SymmetricMatrix covariance(const float* points, const int32_t* neighbors, int64_t count) {
  double x = 0, y = 0, z = 0;
  SymmetricMatrix sums{};
  for (int64_t k = 0; k < count; ++k) {
    const float* neighbor = points + 3 * static_cast<int64_t>(neighbors[k]);
    const double px = neighbor[0], py = neighbor[1], pz = neighbor[2];
    x += px;
    y += py;
    z += pz;
    sums.xx += px * px;
    sums.xy += px * py;
    sums.xz += px * pz;
    sums.yy += py * py;
    sums.yz += py * pz;
    sums.zz += pz * pz;
  }
  const double n = static_cast<double>(count);
  x /= n;
  y /= n;
  z /= n;
  return {sums.xx / n - x * x, sums.xy / n - x * y, sums.xz / n - x * z,
          sums.yy / n - y * y, sums.yz / n - y * z, sums.zz / n - z * z};
}

}  // namespace

void surface_normals(const float* points, int64_t num_points, const NeighborRows& neighbors,
                     bool faces_camera, double* normals) {
  parallel_for(num_points, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* point = points + 3 * i;
      const int count = neighbors.count(i);
      Direction normal{0, 0, 1};
      if (count >= kMinNeighbors && neighbors.squared_row(i)[count - 1] > 0) {
        normal = smallest_direction(covariance(points, neighbors.row(i), count));
      }
      const double away = (normal.x * point[0] + normal.y * point[1]) + normal.z * point[2];
      const double sign = faces_camera && away > 0 ? -1 : 1;
      normals[3 * i] = sign * normal.x;
      normals[3 * i + 1] = sign * normal.y;
      normals[3 * i + 2] = sign * normal.z;
    }
  });
}

}  // namespace mmad_fast
