// Farthest point sampling on the CPU, pruned by the boxes of a PointIndex.
//
// Every point has its squared distance to the chosen set; every leaf and every block of leaves has
// the largest of theirs. A new sample can lower the distance of a point only in leaves whose box is
// nearer to it than their largest: 16 boxes are tested at a time, first those of the blocks, then
// those of the leaves of each block in question, and only such leaves are updated. The next sample
// is then found from the blocks' largest distances downwards.
//
// Squared distances are never negative, so their bit patterns order like integers: minima and
// maxima are taken on int32, which compilers vectorise without relaxing float rules. -1 marks a
// point that is no candidate. float32 throughout, (dx*dx + dy*dy) + dz*dz, no contraction. One
// thread: what is left to do per sample is shorter than waking another one; the index is built by
// all of them.
#include <algorithm>
#include <vector>

#include "common/point_index.h"
#include "common/simd.h"
#include "farthest_point_sampling/op.h"

namespace mmad_fast {
namespace detail {

constexpr int32_t kInfinityBits = 0x7f800000;
constexpr int32_t kNoCandidate = -1;

// What sampling keeps per point, leaf and block, as bits; padding is no candidate.
struct SamplingState {
  UninitializedVector<int32_t> nearest;  // per leaf [64]
  AlignedInts leaf_largest;              // per block [16]
  AlignedInts block_largest;             // a multiple of 16
};

alignas(64) constexpr int32_t kBits[kBoxesPerGroup] = {
    1 << 0, 1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
    1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};

// The kernels below are functions with one loop each: compilers vectorise those best.

// Bit i: box i is nearer to the sample than largest[i], of 16.
MMAD_FAST_MULTIVERSION uint32_t boxes_to_update(const BoxGroup& boxes, const float* sample,
                                                const int32_t* __restrict largest) {
  const float x = sample[0], y = sample[1], z = sample[2];
  int32_t mask = 0;
  for (int64_t i = 0; i < kBoxesPerGroup; ++i) {
    mask |= -static_cast<int32_t>(box_distance(boxes, i, x, y, z) < largest[i]) & kBits[i];
  }
  return static_cast<uint32_t>(mask);
}

// Bit i: values[i] == wanted, of 16.
MMAD_FAST_MULTIVERSION uint32_t mask_of_equal(const int32_t* values, int32_t wanted) {
  int32_t mask = 0;
  for (int64_t i = 0; i < kBoxesPerGroup; ++i) {
    mask |= -static_cast<int32_t>(values[i] == wanted) & kBits[i];
  }
  return static_cast<uint32_t>(mask);
}

MMAD_FAST_MULTIVERSION int32_t largest_of(const int32_t* values, int64_t count) {
  int32_t largest = kNoCandidate;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, values[i]);
  return largest;
}

// Lowers the distances of one leaf's points; returns the largest of them.
MMAD_FAST_MULTIVERSION int32_t update_leaf(const float* __restrict leaf, const float* sample,
                                           int32_t* __restrict nearest) {
  const float x = sample[0], y = sample[1], z = sample[2];
  int32_t largest = kNoCandidate;
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const float dx = leaf[i] - x, dy = leaf[i + kLeafSize] - y, dz = leaf[i + 2 * kLeafSize] - z;
    const int32_t updated = std::min(nearest[i], float_bits((dx * dx + dy * dy) + dz * dz));
    nearest[i] = updated;
    largest = std::max(largest, updated);
  }
  return largest;
}

// The lowest index among a leaf's points whose distance is the wanted one.
MMAD_FAST_MULTIVERSION uint32_t lowest_index(const int32_t* nearest, const uint32_t* indices,
                                             int32_t wanted) {
  uint32_t lowest = kNoPoint;
  for (int64_t i = 0; i < kLeafSize; ++i) {
    lowest = std::min(lowest, nearest[i] == wanted ? indices[i] : kNoPoint);
  }
  return lowest;
}

// Calls visit(i) for the bits that are set.
template <typename Visit>
void for_each_bit(uint32_t mask, const Visit& visit) {
  for (; mask != 0; mask &= mask - 1) visit(__builtin_ctz(mask));
}

// Takes a new sample into account.
void update(const PointIndex& index, const float* sample, SamplingState& state) {
  for (size_t g = 0; g < index.block_boxes.size(); ++g) {
    int32_t* block_largest = &state.block_largest[g * kBoxesPerGroup];
    for_each_bit(boxes_to_update(index.block_boxes[g], sample, block_largest), [&](int64_t b) {
      const int64_t block = static_cast<int64_t>(g) * kBoxesPerGroup + b;
      int32_t* leaf_largest = &state.leaf_largest[block * kBoxesPerGroup];
      for_each_bit(boxes_to_update(index.leaf_boxes[block], sample, leaf_largest), [&](int64_t l) {
        const int64_t leaf = block * kBoxesPerGroup + l;
        leaf_largest[l] =
            update_leaf(index.leaf_coordinates(leaf), sample, &state.nearest[leaf * kLeafSize]);
      });
      block_largest[b] = largest_of(leaf_largest, kBoxesPerGroup);
    });
  }
}

// The lowest index among the points whose distance is `largest`.
uint32_t first_with(const PointIndex& index, const SamplingState& state, int32_t largest) {
  uint32_t first = kNoPoint;
  for (size_t g = 0; g < index.block_boxes.size(); ++g) {
    const int32_t* block_largest = &state.block_largest[g * kBoxesPerGroup];
    for_each_bit(mask_of_equal(block_largest, largest), [&](int64_t b) {
      const int64_t block = static_cast<int64_t>(g) * kBoxesPerGroup + b;
      const int32_t* leaf_largest = &state.leaf_largest[block * kBoxesPerGroup];
      for_each_bit(mask_of_equal(leaf_largest, largest), [&](int64_t l) {
        const int64_t leaf = block * kBoxesPerGroup + l;
        first = std::min(first, lowest_index(&state.nearest[leaf * kLeafSize],
                                             index.leaf_indices(leaf), largest));
      });
    });
  }
  return first;
}

void sample(const PointIndex& index, SamplingState& state, int64_t num_samples, int64_t* indices) {
  for (int64_t s = 1; s < num_samples; ++s) {
    update(index, index.points + 3 * indices[s - 1], state);
    const int32_t largest =
        largest_of(state.block_largest.data(), static_cast<int64_t>(state.block_largest.size()));
    // All points are chosen, or none may be: that does not change any more.
    if (largest <= 0) {
      const int64_t repeated = largest < 0 ? 0 : first_with(index, state, largest);
      std::fill(indices + s, indices + num_samples, repeated);
      return;
    }
    indices[s] = first_with(index, state, largest);
  }
}

// The distances of one leaf's points before any is chosen; returns the largest.
MMAD_FAST_MULTIVERSION int32_t start_leaf(const float* __restrict leaf,
                                          const uint32_t* __restrict indices,
                                          double least_squared_norm, int32_t* __restrict nearest) {
  int32_t largest = kNoCandidate;
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const float x = leaf[i], y = leaf[i + kLeafSize], z = leaf[i + 2 * kLeafSize];
    const bool is_far = (x * x + y * y) + z * z > least_squared_norm;
    nearest[i] = is_far && indices[i] != kNoPoint ? kInfinityBits : kNoCandidate;
    largest = std::max(largest, nearest[i]);
  }
  return largest;
}

SamplingState initial_state(const PointIndex& index, bool skip_near_origin) {
  SamplingState state;
  state.nearest.resize(index.num_blocks * kBoxesPerGroup * kLeafSize);
  state.leaf_largest.assign(index.num_blocks * kBoxesPerGroup, kNoCandidate);
  state.block_largest.assign(index.block_boxes.size() * kBoxesPerGroup, kNoCandidate);
  for (int64_t block = 0; block < index.num_blocks; ++block) {
    int32_t* leaf_largest = &state.leaf_largest[block * kBoxesPerGroup];
    for (int64_t i = 0; i < index.leaf_counts[block]; ++i) {
      const int64_t leaf = block * kBoxesPerGroup + i;
      leaf_largest[i] =
          start_leaf(index.leaf_coordinates(leaf), index.leaf_indices(leaf),
                     skip_near_origin ? 1e-3 : -1.0, &state.nearest[leaf * kLeafSize]);
    }
    state.block_largest[block] = largest_of(leaf_largest, kBoxesPerGroup);
  }
  return state;
}

}  // namespace detail

void farthest_point_sampling(const PointIndex& index, int64_t num_samples, int64_t start_index,
                             bool skip_near_origin, int64_t* indices) {
  detail::SamplingState state = detail::initial_state(index, skip_near_origin);
  indices[0] = start_index;
  detail::sample(index, state, num_samples, indices);
}

}  // namespace mmad_fast
