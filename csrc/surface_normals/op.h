// The direction across the plane that fits a point's nearest neighbours best.
#pragma once

#include <cstdint>

#include "common/neighbor_rows.h"

namespace mmad_fast {

// For points (N, 3) and the neighbours of each, writes normals (N, 3) of unit length: (0, 0, 1)
// where there are fewer than 3 neighbours or all are in one place. Towards a camera in the origin,
// or with the sign that Open3D gives.
void surface_normals(const float* points, int64_t num_points, const NeighborRows& neighbors,
                     bool faces_camera, double* normals);

namespace cuda {

// On the current device; pointers into its memory. As above, for normals that are float or double.
// The stream is a cudaStream_t.
template <typename Normal>
void surface_normals(const float* points, int64_t num_points, const NeighborRows& neighbors,
                     bool faces_camera, Normal* normals, void* stream);

}  // namespace cuda
}  // namespace mmad_fast
