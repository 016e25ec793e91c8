// Farthest point sampling.
#pragma once

#include <cstdint>

#include "common/point_index.h"

namespace mmad_fast {

// Writes num_samples indices: the start, then each time the point farthest from all chosen ones.
// The index holds N >= 1 points; 0 <= start_index < N; indices (num_samples). Ties: lowest index.
// With skip_near_origin, points with x^2 + y^2 + z^2 <= 1e-3 are never chosen but as the start.
void farthest_point_sampling(const PointIndex& index, int64_t num_samples, int64_t start_index,
                             bool skip_near_origin, int64_t* indices);

}  // namespace mmad_fast
