// Grouping on the CPU: an exact search per centre in a PointIndex, centres shared among the
// threads.
//
// A neighbour is one integer: squared distance (float32 bits, which order like integers because it
// is never negative) above the point's index. Smaller means nearer, and of equals the lower index.
//
// Search: the distances to all blocks at once, then blocks, nearest first, and within a block
// leaves, nearest first. What a leaf holds below the bound goes unsorted into a buffer; when that
// is full it is cut back to the nearest, which tightens the bound. Both that and the order at the
// end are found with buckets of equal width of squared distance, which points on a surface fill
// evenly; keys that crowd into few buckets are sorted by comparisons. float32 distances by direct
// differences, (dx*dx + dy*dy) + dz*dz.
#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "common/point_index.h"
#include "knn_grouping/op.h"

namespace mmad_fast {
namespace detail {

using NeighborKey = uint64_t;

constexpr int32_t kInfiniteDistance = 0x7f800000;
constexpr int32_t kNumBuckets = 128;
constexpr int32_t kCrowded = 16;  // keys in one bucket that are too many for insertion sort

inline NeighborKey key_of(int32_t squared_distance, uint32_t index) {
  return (static_cast<NeighborKey>(squared_distance) << 32) | index;
}

// Squared distances to 16 boxes, as bits.
MMAD_FAST_MULTIVERSION void box_distances(const BoxGroup& boxes, const float* query,
                                          int32_t* __restrict distances) {
  const float x = query[0], y = query[1], z = query[2];
  for (int64_t i = 0; i < kBoxesPerGroup; ++i) distances[i] = box_distance(boxes, i, x, y, z);
}

// Appends the leaf's keys below the bound; there is room for a whole leaf.
MMAD_FAST_MULTIVERSION int64_t scan_leaf(const float* __restrict leaf,
                                         const uint32_t* __restrict indices, const float* query,
                                         NeighborKey bound, NeighborKey* __restrict found) {
  const float x = query[0], y = query[1], z = query[2];
  int32_t distances[kLeafSize];
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const float dx = leaf[i] - x, dy = leaf[i + kLeafSize] - y, dz = leaf[i + 2 * kLeafSize] - z;
    distances[i] = float_bits((dx * dx + dy * dy) + dz * dz);
  }
  int64_t count = 0;
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const NeighborKey key = key_of(distances[i], indices[i]);
    found[count] = key;
    count += key < bound;
  }
  return count;
}

// The largest squared distance of some keys, as bits.
MMAD_FAST_MULTIVERSION int32_t largest_distance(const NeighborKey* keys, int64_t count) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, static_cast<int32_t>(keys[i] >> 32));
  }
  return largest;
}

// The bucket of each key: monotonic in its distance.
MMAD_FAST_MULTIVERSION void find_buckets(const NeighborKey* __restrict keys, int64_t count,
                                         float buckets_per_distance, int32_t* __restrict buckets) {
  for (int64_t i = 0; i < count; ++i) {
    const float distance = __builtin_bit_cast(float, static_cast<int32_t>(keys[i] >> 32));
    buckets[i] = std::min(static_cast<int32_t>(distance * buckets_per_distance), kNumBuckets - 1);
  }
}

inline void insertion_sort(NeighborKey* keys, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    const NeighborKey key = keys[i];
    int64_t at = i;
    for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
    keys[at] = key;
  }
}

// The search of one centre after another, with the memory that it uses again.
class NeighborSearch {
 public:
  NeighborSearch(const PointIndex& index, int64_t num_neighbors)
      : index_(index),
        num_neighbors_(num_neighbors),
        limit_(2 * num_neighbors + kLeafSize),
        block_distances_(index.block_boxes.size() * kBoxesPerGroup),
        found_(limit_ + kLeafSize),
        sorted_(limit_ + kLeafSize),
        buckets_(limit_ + kLeafSize) {}

  // The keys of the nearest points, ascending; valid until the next call.
  const NeighborKey* nearest(const float* query) {
    count_ = 0;
    bound_ = key_of(kInfiniteDistance, 0);
    for (size_t g = 0; g < index_.block_boxes.size(); ++g) {
      box_distances(index_.block_boxes[g], query, &block_distances_[g * kBoxesPerGroup]);
    }
    // The nearest block alone gives a bound that leaves few others.
    const auto nearest = std::min_element(block_distances_.begin(), block_distances_.end());
    const uint32_t first = static_cast<uint32_t>(nearest - block_distances_.begin());
    visit_block(first, query);
    others_.clear();
    for (uint32_t b = 0; b < block_distances_.size(); ++b) {
      if (key_of(block_distances_[b], 0) < bound_ && b != first) {
        others_.push_back(key_of(block_distances_[b], b));
      }
    }
    std::sort(others_.begin(), others_.end());
    for (const NeighborKey block : others_) {
      if (key_of(static_cast<int32_t>(block >> 32), 0) >= bound_) break;
      visit_block(static_cast<uint32_t>(block), query);
    }
    return sort_found();
  }

 private:
  void visit_block(uint32_t block, const float* query) {
    int32_t distances[kBoxesPerGroup];
    box_distances(index_.leaf_boxes[block], query, distances);
    for (;;) {
      const int32_t* nearest = std::min_element(distances, distances + kBoxesPerGroup);
      const int64_t within = nearest - distances;
      if (key_of(*nearest, 0) >= bound_) return;
      distances[within] = kInfiniteDistance;
      const int64_t leaf = static_cast<int64_t>(block) * kBoxesPerGroup + within;
      count_ += scan_leaf(index_.leaf_coordinates(leaf), index_.leaf_indices(leaf), query, bound_,
                          found_.data() + count_);
      if (count_ > limit_) keep_nearest();
    }
  }

  // Counts the keys per bucket. Returns the bucket in which the last neighbour is, or
  // kNumBuckets where buckets do not tell: few keys, or distances that have no usable scale.
  int32_t fill_buckets() {
    const int32_t largest = largest_distance(found_.data(), count_);
    const float scale = kNumBuckets / __builtin_bit_cast(float, largest);
    if (count_ < kNumBuckets / 4 || !(scale <= std::numeric_limits<float>::max())) {
      return kNumBuckets;
    }
    find_buckets(found_.data(), count_, scale, buckets_.data());
    std::fill(ends_, ends_ + kNumBuckets, 0);
    for (int64_t i = 0; i < count_; ++i) ++ends_[buckets_[i]];
    int32_t last = 0;
    for (int64_t total = ends_[0]; total < num_neighbors_; total += ends_[++last]) continue;
    return last;
  }

  void keep_nearest() {
    const int32_t last = fill_buckets();
    if (last < kNumBuckets) {
      int64_t kept = 0;
      for (int64_t i = 0; i < count_; ++i) {
        found_[kept] = found_[i];
        kept += buckets_[i] <= last;
      }
      count_ = kept;
    }
    if (count_ > limit_ - kLeafSize / 2) {
      std::nth_element(found_.begin(), found_.begin() + (num_neighbors_ - 1),
                       found_.begin() + count_);
      count_ = num_neighbors_;
    }
    bound_ = *std::max_element(found_.begin(), found_.begin() + count_);
  }

  const NeighborKey* sort_found() {
    const int32_t last = fill_buckets();
    if (last == kNumBuckets) {
      std::sort(found_.begin(), found_.begin() + count_);
      return found_.data();
    }
    // A counting sort by bucket leaves little to do where no bucket is crowded.
    int32_t fullest = 0, total = 0;
    for (int32_t b = 0; b <= last; ++b) {
      fullest = std::max(fullest, ends_[b]);
      total += std::exchange(ends_[b], total);
    }
    for (int64_t i = 0; i < count_; ++i) {
      if (buckets_[i] <= last) sorted_[ends_[buckets_[i]]++] = found_[i];
    }
    if (fullest > kCrowded) {
      std::sort(sorted_.begin(), sorted_.begin() + total);
    } else {
      insertion_sort(sorted_.data(), total);
    }
    return sorted_.data();
  }

  const PointIndex& index_;
  const int64_t num_neighbors_;
  const int64_t limit_;  // more keys than this are cut back
  std::vector<int32_t> block_distances_;
  std::vector<NeighborKey> found_, sorted_, others_;
  std::vector<int32_t> buckets_;  // of the keys in found_
  int32_t ends_[kNumBuckets];     // keys per bucket; then where each bucket ends
  int64_t count_ = 0;             // keys in found_
  NeighborKey bound_ = 0;         // no key at or above it is wanted
};

}  // namespace detail

void knn_grouping(const PointIndex& index, const int64_t* center_indices, int64_t num_centers,
                  int64_t num_neighbors, int64_t* indices, float* groups) {
  parallel_for(num_centers, 32, [&](int64_t begin, int64_t end) {
    detail::NeighborSearch search(index, num_neighbors);
    for (int64_t g = begin; g < end; ++g) {
      const float* center = index.points + 3 * center_indices[g];
      const detail::NeighborKey* found = search.nearest(center);
      for (int64_t k = 0; k < num_neighbors; ++k) {
        const int64_t neighbor = static_cast<uint32_t>(found[k]);
        const int64_t at = g * num_neighbors + k;
        indices[at] = neighbor;
        for (int axis = 0; axis < 3; ++axis) {
          groups[3 * at + axis] = index.points[3 * neighbor + axis] - center[axis];
        }
      }
    }
  });
}

}  // namespace mmad_fast
