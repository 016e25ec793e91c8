// Grouping on the CPU: an exact search per centre in a PointIndex, centres shared among the
// threads.
#include "common/neighbor_search.h"
#include "common/parallel.h"
#include "knn_grouping/op.h"

namespace mmad_fast {

void knn_grouping(const PointIndex& index, const int64_t* center_indices, int64_t num_centers,
                  int64_t num_neighbors, int64_t* indices, float* groups) {
  parallel_for(num_centers, 32, [&](int64_t begin, int64_t end) {
    NeighborSearch search(index, num_neighbors);
    for (int64_t g = begin; g < end; ++g) {
      const float* center = index.points + 3 * center_indices[g];
      const NeighborKey* found = search.nearest(center);
      for (int64_t k = 0; k < num_neighbors; ++k) {
        const int64_t neighbor = static_cast<uint32_t>(found[k]);
        const int64_t at = g * num_neighbors + k;
        indices[at] = neighbor;
        for (int axis = 0; axis < 3; ++axis) {
          groups[3 * at + axis] = index.points[3 * neighbor + axis] - center[axis];
        }
      }
    }
  });
}

}  // namespace mmad_fast
