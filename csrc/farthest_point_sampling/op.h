// Farthest point sampling.
#pragma once

#include <cstdint>

namespace mmad_fast {

// Writes num_samples indices: the start, then each time the point farthest from all chosen ones.
// points (N, 3) row-major, N >= 1; 0 <= start_index < N; indices (num_samples). Ties: lowest index.
// Works in 16 bytes per point of its own.
// With skip_near_origin, points with x^2 + y^2 + z^2 <= 1e-3 are never chosen but as the start.
void farthest_point_sampling(const float* points, int64_t num_points, int64_t num_samples,
                             int64_t start_index, bool skip_near_origin, int64_t* indices);

}  // namespace mmad_fast
