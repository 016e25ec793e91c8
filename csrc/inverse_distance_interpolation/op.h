// Inverse distance interpolation from the three nearest centres, and its composition with smoothing
// and pooling.
#pragma once

#include <cstdint>
#include <vector>

#include "common/sparse_rows.h"

namespace mmad_fast {

struct PointIndex;

// The index holds N points; centers (G, 3) row-major, 3 <= G < 2^31. Writes per point the three
// nearest centres, ascending by distance, ties: lowest index, and the weights 1 / (d^2 + 1e-8),
// summing to 1.
void inverse_distance_weights(const PointIndex& index, const float* centers, int64_t num_centers,
                              int64_t* indices, float* weights);

// As above, and from features (G, C) writes dense (N, C): per point the three nearest centres'
// features, weighted.
void inverse_distance_interpolation(const PointIndex& index, const float* centers,
                                    int64_t num_centers, const float* features,
                                    int64_t num_channels, float* dense);

// Sparse rows over centres, one per pooled pixel; columns ascend within a row.
struct PooledRows {
  std::vector<int64_t> pixel_indices;  // (P), ascending
  SparseRows rows;
};

// The rows of: scatter the N interpolated points to grid_size^2 zeros at pixel_indices (each at
// most once), average 3 x 3 without padding, average adaptively to output_size^2. Only of outputs
// whose window holds a point. indices, weights (N, 3) as written above; grid_size >= 3, output_size
// >= 1.
PooledRows pooled_interpolation_rows(const int64_t* indices, const float* weights,
                                     const int64_t* pixel_indices, int64_t num_points,
                                     int64_t num_centers, int64_t grid_size, int64_t output_size);

namespace cuda {

// On the current device; pointers into its memory. As inverse_distance_weights above, for points
// (N, 3). The stream is a cudaStream_t.
void inverse_distance_weights(const float* points, int64_t num_points, const float* centers,
                              int64_t num_centers, int64_t* indices, float* weights, void* stream);

}  // namespace cuda

}  // namespace mmad_fast
