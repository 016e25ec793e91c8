// Farthest point sampling on the CPU.
//
// Algorithm: one pass over all points per sample updates each point's squared distance to the
// chosen set and finds the largest. Points lie as three arrays x, y, z in blocks of 1024; a pass
// notes the largest of each block and looks for its index only in the block that won. Squared
// distances are never negative, so their bit patterns order like integers: minimum and maximum are
// taken on int32, which compilers vectorise without relaxing float rules. -1 marks a point that is
// no candidate. float32 throughout, (dx*dx + dy*dy) + dz*dz, no contraction. Threads share a pass
// only where it is long enough to pay for waking them.
#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "common/simd.h"
#include "farthest_point_sampling/op.h"

namespace mmad_fast {
namespace detail {

constexpr int64_t kFpsBlock = 1024;
constexpr int64_t kFpsBlocksPerThread = 32;
constexpr int32_t kInfinityBits = 0x7f800000;
constexpr int32_t kNoCandidate = -1;

// One block of one pass; returns the block's largest squared distance as bits.
MMAD_FAST_MULTIVERSION int32_t fps_update_block(const float* __restrict x,
                                                const float* __restrict y,
                                                const float* __restrict z, float chosen_x,
                                                float chosen_y, float chosen_z,
                                                int32_t* __restrict nearest) {
  int32_t largest = kNoCandidate;
  for (int64_t i = 0; i < kFpsBlock; ++i) {
    const float dx = x[i] - chosen_x;
    const float dy = y[i] - chosen_y;
    const float dz = z[i] - chosen_z;
    const float squared_distance = (dx * dx + dy * dy) + dz * dz;
    const int32_t updated = std::min(nearest[i], float_bits(squared_distance));
    nearest[i] = updated;
    largest = std::max(largest, updated);
  }
  return largest;
}

}  // namespace detail

void farthest_point_sampling(const float* points, int64_t num_points, int64_t num_samples,
                             int64_t start_index, bool skip_near_origin, int64_t* indices) {
  using detail::kFpsBlock;
  const int64_t blocks = (num_points + kFpsBlock - 1) / kFpsBlock;
  const int64_t padded = blocks * kFpsBlock;
  std::vector<float> coordinates(3 * padded);
  float* x = coordinates.data();
  float* y = x + padded;
  float* z = y + padded;
  std::vector<int32_t> nearest(padded, detail::kNoCandidate);
  std::vector<int32_t> block_largest(blocks);
  for (int64_t i = 0; i < num_points; ++i) {
    x[i] = points[3 * i];
    y[i] = points[3 * i + 1];
    z[i] = points[3 * i + 2];
    const float squared_norm = (x[i] * x[i] + y[i] * y[i]) + z[i] * z[i];
    if (!(skip_near_origin && squared_norm <= 1e-3)) nearest[i] = detail::kInfinityBits;
  }
  int64_t chosen = start_index;
  for (int64_t s = 0; s < num_samples; ++s) {
    indices[s] = chosen;
    if (s + 1 == num_samples) break;
    const float cx = x[chosen], cy = y[chosen], cz = z[chosen];
    parallel_for(blocks, detail::kFpsBlocksPerThread, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t at = b * kFpsBlock;
        block_largest[b] =
            detail::fps_update_block(x + at, y + at, z + at, cx, cy, cz, nearest.data() + at);
      }
    });
    // max_element and find return the first: the lowest index among equals, and 0 where no point is
    // a candidate.
    const auto winner = std::max_element(block_largest.begin(), block_largest.end());
    const auto block = nearest.begin() + (winner - block_largest.begin()) * kFpsBlock;
    chosen = std::find(block, block + kFpsBlock, *winner) - nearest.begin();
  }
}

}  // namespace mmad_fast
