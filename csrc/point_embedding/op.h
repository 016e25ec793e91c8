// Point-MAE's group embedder, a mini-PointNet: one token per group of points.
#pragma once

#include <cstdint>
#include <vector>

#include "common/gemm.h"

namespace mmad_fast {

constexpr int64_t kHiddenChannels = 128;  // after the first layer
constexpr int64_t kLocalChannels = 256;   // whose maximum over a group describes the group
constexpr int64_t kWideChannels = 512;    // after the second BatchNorm
constexpr int64_t kTokenChannels = 384;

// Weights, row-major (out x in) like those of torch's Linear; README.md has the algebra behind
// them. The norms' weights and biases are null where their statistics are folded into the other
// weights.
struct EmbedderView {
  const float* first_weight;  // (128 x 3)
  const float* first_bias;    // (128)
  const float* wide_weight;   // (256 x 128)
  const float* local_weight;  // (512 x 128)
  const float* group_weight;  // (512 x 256)
  const float* group_bias;    // (512)
  const float* final_weight;  // (384 x 512)
  const float* final_bias;    // (384)
  const float* first_norm_weight;
  const float* first_norm_bias;
  const float* second_norm_weight;
  const float* second_norm_bias;
};

// B (n x k) of C = A * B^T: panels of a few vectors of columns, each panel depth-major over all k.
// Unlike those of gemm.h a panel is not divided by depth: the kernel visits chosen rows of it.
struct ChannelPanels {
  int64_t n = 0;
  int64_t k = 0;
  AlignedFloats panels;
};

// The weights, ready to be multiplied.
struct PackedEmbedder {
  InstructionSet instruction_set = InstructionSet::kBaseline;
  bool uses_cloud_statistics = false;
  std::vector<float> first_weight, first_bias, local_weight, final_bias, group_bias;
  std::vector<float> first_norm_weight, first_norm_bias, second_norm_weight, second_norm_bias;
  ChannelPanels wide, local, final;
  PackedMatrix group, local_of_means;
  // How much larger than its largest input a layer's output can get: the largest row sum of |w|.
  double wide_growth = 0, local_growth = 0, group_growth = 0, final_growth = 0;
};

PackedEmbedder pack_embedder(const EmbedderView& weights,
                             InstructionSet instruction_set = best_instruction_set());

// tokens (num_groups x 384) of groups (num_groups x group_size x 3), finite. False, with tokens
// undefined, where an activation might leave the range of float32.
bool point_embedding(const float* groups, int64_t num_groups, int64_t group_size,
                     const PackedEmbedder& embedder, float* tokens);

}  // namespace mmad_fast
