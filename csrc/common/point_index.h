// A spatial index over a cloud that sampling, grouping and interpolation share: the leaves of a k-d
// tree, each with its box, and blocks of neighbouring leaves with theirs.
//
// Pruning by boxes is exact in float32: a box's distance is computed by the same rounded operations
// as a point's, and each of them is monotonic, so it never exceeds that of a point in the box.
#pragma once

#include <cstdint>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/simd.h"

namespace mmad_fast {

constexpr int64_t kLeafSize = 64;
constexpr int64_t kBoxesPerGroup = 16;
constexpr uint32_t kNoPoint = 0xffffffff;

// The boxes of 16 leaves, or of 16 blocks. An empty box is at an infinite distance.
struct alignas(64) BoxGroup {
  float low[3][kBoxesPerGroup], high[3][kBoxesPerGroup];
};

// Leaf i belongs to block i / 16, which may have fewer. Leaves are padded with points at infinity.
struct PointIndex {
  const float* points;  // (N, 3), the caller's; must outlive the index
  int64_t num_points;
  int64_t num_blocks;
  std::vector<int32_t> leaf_counts;           // per block
  UninitializedVector<BoxGroup> leaf_boxes;   // one group per block
  UninitializedVector<BoxGroup> block_boxes;  // one group per 16 blocks
  UninitializedVector<float> coordinates;     // per leaf x[64], y[64], z[64]
  UninitializedVector<uint32_t> indices;      // per leaf [64], or kNoPoint

  const float* leaf_coordinates(int64_t leaf) const { return &coordinates[3 * kLeafSize * leaf]; }
  const uint32_t* leaf_indices(int64_t leaf) const { return &indices[kLeafSize * leaf]; }
};

// points (N, 3) row-major, N < 2^32 - 1, finite, with finite squared distances.
PointIndex build_point_index(const float* points, int64_t num_points);

// The squared distance of a point to one of 16 boxes, as bits; 0 inside.
inline MMAD_FAST_ALWAYS_INLINE int32_t box_distance(const BoxGroup& boxes, int64_t i, float x,
                                                    float y, float z) {
  const auto outside = [](float low, float value, float high) {
    const float below = low - value, above = value - high;
    const float side = below > above ? below : above;
    return side > 0.0f ? side : 0.0f;
  };
  const float dx = outside(boxes.low[0][i], x, boxes.high[0][i]);
  const float dy = outside(boxes.low[1][i], y, boxes.high[1][i]);
  const float dz = outside(boxes.low[2][i], z, boxes.high[2][i]);
  return float_bits((dx * dx + dy * dy) + dz * dz);
}

}  // namespace mmad_fast
