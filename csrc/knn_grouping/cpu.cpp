// Grouping on the CPU: a k-d tree over the points, one exact search per centre, centres shared
// among the threads. Memory: 16 bytes per point for the tree's leaves. float32 distances by direct
// differences, (dx*dx + dy*dy) + dz*dz.
#include <vector>

#include "common/parallel.h"
#include "common/point_index.h"
#include "knn_grouping/op.h"

namespace mmad_fast {

void knn_grouping(const float* points, int64_t num_points, const int64_t* center_indices,
                  int64_t num_centers, int64_t num_neighbors, int64_t* indices, float* groups) {
  const PointIndex index(points, num_points);
  parallel_for(num_centers, 32, [&](int64_t begin, int64_t end) {
    std::vector<NeighborKey> found;
    for (int64_t g = begin; g < end; ++g) {
      const float* center = points + 3 * center_indices[g];
      index.nearest(center, num_neighbors, found);
      for (int64_t k = 0; k < num_neighbors; ++k) {
        const int64_t neighbor = neighbor_index(found[k]);
        const int64_t at = g * num_neighbors + k;
        indices[at] = neighbor;
        for (int axis = 0; axis < 3; ++axis) {
          groups[3 * at + axis] = points[3 * neighbor + axis] - center[axis];
        }
      }
    }
  });
}

}  // namespace mmad_fast
