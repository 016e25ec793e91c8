// The nearest neighbours of every point of a cloud.
#pragma once

#include <cstdint>

namespace mmad_fast {

struct PointIndex;

// Writes rows of the row_length nearest points of each point, the point itself among them, whose
// squared distance is below squared_radius: indices (N, row_length), ascending by distance, of
// equals the lowest first, -1 behind the last; their squared distances, infinite there; and how
// many there are (N). 1 <= row_length <= N < 2^31, squared_radius > 0.
void find_point_neighbors(const PointIndex& index, int64_t row_length, float squared_radius,
                          int32_t* indices, float* squared_distances, int32_t* counts);

}  // namespace mmad_fast
