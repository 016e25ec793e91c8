// A crossmodal mapping network on every pixel, and how far its prediction is from the feature
// there.
#pragma once

#include <cstdint>
#include <vector>

#include "common/gemm.h"
#include "common/sparse_rows.h"

namespace mmad_fast {

// One layer of a network: weight (out x in), row-major, and bias (out).
struct LinearView {
  const float* weight;
  const float* bias;
  int64_t out;
  int64_t in;
};

// Linear layers with a GELU between them, ready to be multiplied.
struct PackedNetwork {
  std::vector<PackedMatrix> weights;
  std::vector<AlignedFloats> biases;  // filled up with zeros to whole vectors
  PackedMatrix rotation;
};

// The last layer's outputs are in an orthogonal basis in which its weight has few non-zeros;
// rotation (out x out, row-major, out that of the last layer) takes targets there.
PackedNetwork pack_network(const std::vector<LinearView>& layers, const float* rotation);

// psi[p] = | network(source pixel p) / |.| - rotation * target pixel p / |.| |, norms not below
// 1e-12.
//
// Args: source_features (num_source_tokens x in of the first layer), target_features
// (num_target_tokens x out of the last layer), both row-major; source_rows and target_rows have the
// same number of rows and columns in range; psi has one float per row. Two or more layers.
void pixel_mapping(const float* source_features, int64_t num_source_tokens,
                   const SparseRowsView& source_rows, const float* target_features,
                   int64_t num_target_tokens, const SparseRowsView& target_rows,
                   const PackedNetwork& network, float* psi);

// result[i] = gelu(values[i]) = values[i] * Phi(values[i]), absolute error below 3e-7 + 6e-8 *
// |value|.
void gelu(const float* values, int64_t count, float* result);

}  // namespace mmad_fast
