// Histograms of how the normals around a point turn.
#pragma once

#include <cstdint>

#include "common/neighbor_rows.h"

namespace mmad_fast {

// For points (N, 3), their normals (N, 3) of unit length and the neighbours of each, the first of
// which is left out, writes features (N, 33): three histograms of 11 bins, percent.
void fpfh(const float* points, const double* normals, int64_t num_points,
          const NeighborRows& neighbors, float* features);

namespace cuda {

// On the current device; pointers into its memory. As above, for normals that are float or double
// and at most 1024 neighbours. The workspace has the bytes that _workspace names, with any content.
// The stream is a cudaStream_t.
int64_t fpfh_workspace(int64_t num_points);
template <typename Normal>
void fpfh(const float* points, const Normal* normals, int64_t num_points,
          const NeighborRows& neighbors, float* features, void* workspace, void* stream);

}  // namespace cuda
}  // namespace mmad_fast
