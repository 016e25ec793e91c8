// The K nearest points of one query after another, in a PointIndex.
//
// A neighbour is one integer: squared distance (float32 bits, which order like integers because it
// is never negative) above the point's index. Smaller means nearer, and of equals the lower index.
// float32 distances by direct differences, (dx*dx + dy*dy) + dz*dz.
#pragma once

#include <cstdint>
#include <vector>

#include "common/point_index.h"

namespace mmad_fast {

using NeighborKey = uint64_t;

constexpr int32_t kInfiniteDistance = 0x7f800000;

inline NeighborKey neighbor_key(int32_t squared_distance, uint32_t index) {
  return (static_cast<NeighborKey>(squared_distance) << 32) | index;
}
inline int32_t distance_of(NeighborKey key) { return static_cast<int32_t>(key >> 32); }

// Search: the distances to all blocks at once, then blocks, nearest first, and within a block
// leaves, nearest first. What a leaf holds below the bound goes unsorted into a buffer; when that
// is full it is cut back to the nearest, which tightens the bound. Both that and the order at the
// end are found with buckets of equal width of squared distance, which points on a surface fill
// evenly; keys that crowd into few buckets are sorted by comparisons.
class NeighborSearch {
 public:
  // Only points below the limit, the bits of a squared distance, are neighbours.
  NeighborSearch(const PointIndex& index, int64_t num_neighbors, int32_t limit = kInfiniteDistance);

  // The keys of the nearest points, ascending; valid until the next search.
  const NeighborKey* nearest(const float* query);
  // How many the last search found: num_neighbors or fewer.
  int64_t num_found() const { return num_found_; }

  // Keeps the leaves at a squared distance, as bits, of at most `reach` from a box, for
  // nearest_gathered.
  void gather_leaves(const float* low, const float* high, int32_t reach);
  // As nearest, but of those of the gathered leaves whose squared distance is below a limit.
  const NeighborKey* nearest_gathered(const float* query, int32_t limit);

 private:
  void visit_block(uint32_t block, const float* query);
  void scan(int64_t leaf, const float* query);
  int32_t fill_buckets();
  void keep_nearest();
  const NeighborKey* sort_found();

  static constexpr int32_t kNumBuckets = 128;
  const PointIndex& index_;
  const int64_t num_neighbors_;
  const int32_t limit_;
  const int64_t capacity_;  // more keys than this are cut back
  std::vector<int32_t> block_distances_;
  std::vector<NeighborKey> found_, sorted_, others_;
  std::vector<int32_t> buckets_;  // of the keys in found_
  UninitializedVector<BoxGroup> gathered_boxes_;
  std::vector<int64_t> gathered_leaves_;
  std::vector<int32_t> gathered_distances_;
  int32_t ends_[kNumBuckets];  // keys per bucket; then where each bucket ends
  int64_t count_ = 0;          // keys in found_
  int64_t num_found_ = 0;
  NeighborKey bound_ = 0;  // no key at or above it is wanted
};

}  // namespace mmad_fast
