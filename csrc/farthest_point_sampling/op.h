// Farthest point sampling.
#pragma once

#include <cstdint>

namespace mmad_fast {

struct PointIndex;

// Writes num_samples indices: the start, then each time the point farthest from all chosen ones.
// The index holds N >= 1 points; 0 <= start_index < N; indices (num_samples). Ties: lowest index.
// With skip_near_origin, points with x^2 + y^2 + z^2 <= 1e-3 are never chosen but as the start.
void farthest_point_sampling(const PointIndex& index, int64_t num_samples, int64_t start_index,
                             bool skip_near_origin, int64_t* indices);

namespace cuda {

// On the current device; pointers into its memory. As above, for points (N, 3); the workspace has
// the bytes that _workspace names, with any content, aligned to 256. The stream is a cudaStream_t.
int64_t farthest_point_sampling_workspace(int64_t num_points);
void farthest_point_sampling(const float* points, int64_t num_points, int64_t num_samples,
                             int64_t start_index, bool skip_near_origin, int64_t* indices,
                             void* workspace, void* stream);

}  // namespace cuda

}  // namespace mmad_fast
