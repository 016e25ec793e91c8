#include "common/neighbor_search.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <limits>
#include <utility>

namespace mmad_fast {
namespace detail {

constexpr int32_t kCrowded =
    16;  // keys in one bucket that are too many for passes over all of them

// Squared distances to 16 boxes, as bits.
MMAD_FAST_MULTIVERSION void box_distances(const BoxGroup& boxes, const float* query,
                                          int32_t* __restrict distances) {
  const float x = query[0], y = query[1], z = query[2];
  for (int64_t i = 0; i < kBoxesPerGroup; ++i) distances[i] = box_distance(boxes, i, x, y, z);
}

// Appends the leaf's keys below the bound; there is room for a whole leaf.
MMAD_FAST_MULTIVERSION int64_t scan_leaf_plain(const float* __restrict leaf,
                                               const uint32_t* __restrict indices,
                                               const float* query, NeighborKey bound,
                                               NeighborKey* __restrict found) {
  const float x = query[0], y = query[1], z = query[2];
  int32_t distances[kLeafSize];
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const float dx = leaf[i] - x, dy = leaf[i + kLeafSize] - y, dz = leaf[i + 2 * kLeafSize] - z;
    distances[i] = float_bits((dx * dx + dy * dy) + dz * dz);
  }
  int64_t count = 0;
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const NeighborKey key = neighbor_key(distances[i], indices[i]);
    found[count] = key;
    count += key < bound;
  }
  return count;
}

#if defined(__x86_64__)
// The same, 8 keys at a time: those below the bound are moved together in a register. (The forms
// with a mask of ones are those without, but for warnings of GCC 12.)
__attribute__((target("avx512f,avx512vl,popcnt"))) int64_t scan_leaf_avx512(const float* leaf,
                                                                            const uint32_t* indices,
                                                                            const float* query,
                                                                            NeighborKey bound,
                                                                            NeighborKey* found) {
  constexpr __mmask8 kAll = 0xff;
  const __m256 x = _mm256_set1_ps(query[0]), y = _mm256_set1_ps(query[1]),
               z = _mm256_set1_ps(query[2]);
  const __m512i bounds = _mm512_set1_epi64(static_cast<int64_t>(bound));
  int64_t count = 0;
  for (int64_t i = 0; i < kLeafSize; i += 8) {
    const __m256 dx = _mm256_sub_ps(_mm256_loadu_ps(leaf + i), x),
                 dy = _mm256_sub_ps(_mm256_loadu_ps(leaf + i + kLeafSize), y),
                 dz = _mm256_sub_ps(_mm256_loadu_ps(leaf + i + 2 * kLeafSize), z);
    const __m256 squared = _mm256_add_ps(
        _mm256_add_ps(_mm256_mul_ps(dx, dx), _mm256_mul_ps(dy, dy)), _mm256_mul_ps(dz, dz));
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(indices + i));
    const __m512i high = _mm512_maskz_cvtepu32_epi64(kAll, _mm256_castps_si256(squared));
    const __m512i keys = _mm512_or_si512(_mm512_maskz_slli_epi64(kAll, high, 32),
                                         _mm512_maskz_cvtepu32_epi64(kAll, low));
    const __mmask8 is_below = _mm512_cmplt_epu64_mask(keys, bounds);
    _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi64(is_below, keys));
    count += __builtin_popcount(is_below);
  }
  return count;
}
#endif

inline int64_t scan_leaf(const float* leaf, const uint32_t* indices, const float* query,
                         NeighborKey bound, NeighborKey* found) {
#if defined(__x86_64__)
  static const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  if (has_avx512) return scan_leaf_avx512(leaf, indices, query, bound, found);
#endif
  return scan_leaf_plain(leaf, indices, query, bound, found);
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
                                         float buckets_per_distance, int32_t last_bucket,
                                         int32_t* __restrict buckets) {
  for (int64_t i = 0; i < count; ++i) {
    const float distance = __builtin_bit_cast(float, static_cast<int32_t>(keys[i] >> 32));
    buckets[i] = std::min(static_cast<int32_t>(distance * buckets_per_distance), last_bucket);
  }
}

// One pass of an odd-even transposition sort, without branches.
MMAD_FAST_MULTIVERSION void exchange_pairs(int64_t* keys, int64_t num_pairs) {
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int64_t first = keys[2 * i], second = keys[2 * i + 1];
    keys[2 * i] = first < second ? first : second;
    keys[2 * i + 1] = first < second ? second : first;
  }
}

// Sorts keys that are in order but for runs of at most `longest`.
inline void sort_runs(NeighborKey* keys, int64_t count, int64_t longest) {
  int64_t* signed_keys = reinterpret_cast<int64_t*>(keys);  // none is negative
  for (int64_t pass = 0; pass < longest && longest > 1; ++pass) {
    const int64_t first = pass % 2;
    exchange_pairs(signed_keys + first, (count - first) / 2);
  }
}

// Squared distances of 16 boxes to another, as bits; no more than those of points in them.
MMAD_FAST_MULTIVERSION void distances_of_boxes(const BoxGroup& boxes, const float* low,
                                               const float* high, int32_t* __restrict distances) {
  for (int64_t i = 0; i < kBoxesPerGroup; ++i) {
    float gaps[3];
    for (int axis = 0; axis < 3; ++axis) {
      const float below = boxes.low[axis][i] - high[axis], above = low[axis] - boxes.high[axis][i];
      const float gap = below > above ? below : above;
      gaps[axis] = gap > 0.0f ? gap : 0.0f;
    }
    distances[i] = float_bits((gaps[0] * gaps[0] + gaps[1] * gaps[1]) + gaps[2] * gaps[2]);
  }
}

}  // namespace detail

NeighborSearch::NeighborSearch(const PointIndex& index, int64_t num_neighbors, int32_t limit)
    : index_(index),
      num_neighbors_(num_neighbors),
      limit_(limit),
      capacity_(2 * num_neighbors + kLeafSize),
      block_distances_(index.block_boxes.size() * kBoxesPerGroup),
      found_(capacity_ + kLeafSize),
      sorted_(capacity_ + kLeafSize),
      buckets_(capacity_ + kLeafSize) {}

const NeighborKey* NeighborSearch::nearest(const float* query) {
  count_ = 0;
  bound_ = neighbor_key(limit_, 0);
  for (size_t g = 0; g < index_.block_boxes.size(); ++g) {
    detail::box_distances(index_.block_boxes[g], query, &block_distances_[g * kBoxesPerGroup]);
  }
  // The nearest block alone gives a bound that leaves few others.
  const auto nearest = std::min_element(block_distances_.begin(), block_distances_.end());
  const uint32_t first = static_cast<uint32_t>(nearest - block_distances_.begin());
  visit_block(first, query);
  others_.clear();
  for (uint32_t b = 0; b < block_distances_.size(); ++b) {
    if (neighbor_key(block_distances_[b], 0) < bound_ && b != first) {
      others_.push_back(neighbor_key(block_distances_[b], b));
    }
  }
  std::sort(others_.begin(), others_.end());
  for (const NeighborKey block : others_) {
    if (neighbor_key(distance_of(block), 0) >= bound_) break;
    visit_block(static_cast<uint32_t>(block), query);
  }
  return sort_found();
}

void NeighborSearch::gather_leaves(const float* low, const float* high, int32_t reach) {
  gathered_leaves_.clear();
  for (size_t g = 0; g < index_.block_boxes.size(); ++g) {
    int32_t of_blocks[kBoxesPerGroup], of_leaves[kBoxesPerGroup];
    detail::distances_of_boxes(index_.block_boxes[g], low, high, of_blocks);
    for (int64_t b = 0; b < kBoxesPerGroup; ++b) {
      const int64_t block = static_cast<int64_t>(g) * kBoxesPerGroup + b;
      if (of_blocks[b] > reach || block >= index_.num_blocks) continue;
      detail::distances_of_boxes(index_.leaf_boxes[block], low, high, of_leaves);
      for (int64_t i = 0; i < index_.leaf_counts[block]; ++i) {
        if (of_leaves[i] <= reach) gathered_leaves_.push_back(block * kBoxesPerGroup + i);
      }
    }
  }
  const size_t num_groups = (gathered_leaves_.size() + kBoxesPerGroup - 1) / kBoxesPerGroup;
  gathered_boxes_.resize(num_groups);
  gathered_distances_.resize(num_groups * kBoxesPerGroup);
  for (size_t i = 0; i < num_groups * kBoxesPerGroup; ++i) {
    // The last group is filled up with its last leaf, which is not looked at again.
    const int64_t leaf = gathered_leaves_[std::min(i, gathered_leaves_.size() - 1)];
    const BoxGroup& source = index_.leaf_boxes[leaf / kBoxesPerGroup];
    BoxGroup& target = gathered_boxes_[i / kBoxesPerGroup];
    for (int axis = 0; axis < 3; ++axis) {
      target.low[axis][i % kBoxesPerGroup] = source.low[axis][leaf % kBoxesPerGroup];
      target.high[axis][i % kBoxesPerGroup] = source.high[axis][leaf % kBoxesPerGroup];
    }
  }
}

const NeighborKey* NeighborSearch::nearest_gathered(const float* query, int32_t limit) {
  count_ = 0;
  bound_ = neighbor_key(std::min(limit, limit_), 0);
  for (size_t g = 0; g < gathered_boxes_.size(); ++g) {
    detail::box_distances(gathered_boxes_[g], query, &gathered_distances_[g * kBoxesPerGroup]);
  }
  for (size_t i = 0; i < gathered_leaves_.size(); ++i) {
    if (neighbor_key(gathered_distances_[i], 0) < bound_) scan(gathered_leaves_[i], query);
  }
  return sort_found();
}

void NeighborSearch::visit_block(uint32_t block, const float* query) {
  int32_t distances[kBoxesPerGroup];
  detail::box_distances(index_.leaf_boxes[block], query, distances);
  for (;;) {
    const int32_t* nearest = std::min_element(distances, distances + kBoxesPerGroup);
    const int64_t within = nearest - distances;
    if (neighbor_key(*nearest, 0) >= bound_) return;
    distances[within] = kInfiniteDistance;
    scan(static_cast<int64_t>(block) * kBoxesPerGroup + within, query);
  }
}

void NeighborSearch::scan(int64_t leaf, const float* query) {
  count_ += detail::scan_leaf(index_.leaf_coordinates(leaf), index_.leaf_indices(leaf), query,
                              bound_, found_.data() + count_);
  if (count_ > capacity_) keep_nearest();
}

// Counts the keys per bucket. Returns the bucket in which the last neighbour is, or kNumBuckets
// where buckets do not tell: few keys, or distances that have no usable scale.
int32_t NeighborSearch::fill_buckets() {
  const int32_t largest = detail::largest_distance(found_.data(), count_);
  const float scale = kNumBuckets / __builtin_bit_cast(float, largest);
  if (count_ < kNumBuckets / 4 || !(scale <= std::numeric_limits<float>::max())) {
    return kNumBuckets;
  }
  detail::find_buckets(found_.data(), count_, scale, kNumBuckets - 1, buckets_.data());
  std::fill(ends_, ends_ + kNumBuckets, 0);
  const int64_t count = count_, wanted = std::min(num_neighbors_, count);
  const int32_t* buckets = buckets_.data();
  for (int64_t i = 0; i < count; ++i) ++ends_[buckets[i]];
  int32_t last = 0;
  for (int64_t total = ends_[0]; total < wanted; total += ends_[++last]) continue;
  return last;
}

void NeighborSearch::keep_nearest() {
  const int32_t last = fill_buckets();
  if (last < kNumBuckets) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; ++i) {
      found_[kept] = found_[i];
      kept += buckets_[i] <= last;
    }
    count_ = kept;
  }
  if (count_ > capacity_ - kLeafSize / 2) {
    std::nth_element(found_.begin(), found_.begin() + (num_neighbors_ - 1),
                     found_.begin() + count_);
    count_ = num_neighbors_;
  }
  bound_ = *std::max_element(found_.begin(), found_.begin() + count_);
}

const NeighborKey* NeighborSearch::sort_found() {
  num_found_ = std::min(num_neighbors_, count_);
  const int32_t last = fill_buckets();
  if (last == kNumBuckets) {
    std::sort(found_.begin(), found_.begin() + count_);
    return found_.data();
  }
  // A counting sort by bucket leaves little to do where no bucket is crowded. What is behind the
  // last neighbour is moved along: it costs less than to tell.
  int32_t fullest = 0, total = 0;
  for (int32_t b = 0; b <= last; ++b) {
    fullest = std::max(fullest, ends_[b]);
    total += std::exchange(ends_[b], total);
  }
  int32_t end = total;
  for (int32_t b = last + 1; b < kNumBuckets; ++b) end += std::exchange(ends_[b], end);
  const int64_t count = count_;
  const NeighborKey* found = found_.data();
  const int32_t* buckets = buckets_.data();
  NeighborKey* sorted = sorted_.data();
  for (int64_t i = 0; i < count; ++i) sorted[ends_[buckets[i]]++] = found[i];
  if (fullest > detail::kCrowded) {
    std::sort(sorted_.begin(), sorted_.begin() + total);
  } else {
    detail::sort_runs(sorted_.data(), total, fullest);
  }
  return sorted_.data();
}

}  // namespace mmad_fast
