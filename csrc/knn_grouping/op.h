// The K nearest points of each centre.
#pragma once

#include <cstdint>

#include "common/point_index.h"

namespace mmad_fast {

// The index holds N points; center_indices (G) into them; 1 <= num_neighbors <= N.
// Writes indices (G, K), ascending by distance, ties: lowest index, and groups (G, K, 3), each
// neighbour minus its centre.
void knn_grouping(const PointIndex& index, const int64_t* center_indices, int64_t num_centers,
                  int64_t num_neighbors, int64_t* indices, float* groups);

}  // namespace mmad_fast
