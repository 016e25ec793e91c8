// The K nearest points of each centre.
#pragma once

#include <cstdint>

namespace mmad_fast {

struct PointIndex;

// The index holds N points; center_indices (G) into them; 1 <= num_neighbors <= N.
// Writes indices (G, K), ascending by distance, ties: lowest index, and groups (G, K, 3), each
// neighbour minus its centre.
void knn_grouping(const PointIndex& index, const int64_t* center_indices, int64_t num_centers,
                  int64_t num_neighbors, int64_t* indices, float* groups);

namespace cuda {

// On the current device; pointers into its memory. As above, for points (N, 3) and 1 <=
// num_neighbors <= min(N, 1024); the workspace has the bytes that _workspace names, with any
// content, aligned to 256. The stream is a cudaStream_t.
int64_t knn_grouping_workspace(int64_t num_points, int64_t num_centers, int64_t num_neighbors);
void knn_grouping(const float* points, int64_t num_points, const int64_t* center_indices,
                  int64_t num_centers, int64_t num_neighbors, int64_t* indices, float* groups,
                  void* workspace, void* stream);

// The K nearest of every point, itself among them, that are nearer than the radius (INFINITY: all
// at a finite distance): indices and squared_distances (N, K), ascending, ties: lowest index,
// behind them -1 and INFINITY, and counts (N). Limits and workspace as above, of num_points
// centres.
void point_neighbors(const float* points, int64_t num_points, int64_t num_neighbors,
                     float squared_radius, int32_t* indices, float* squared_distances,
                     int32_t* counts, void* workspace, void* stream);

}  // namespace cuda

}  // namespace mmad_fast
