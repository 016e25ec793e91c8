// Build: split at the median along the longest side of the box until at most 32 points are left.
// Search: depth first, nearer child first. What a leaf holds below the bound goes unsorted into a
// buffer; when that is full it is cut back to the k smallest, which tightens the bound.
//
// The pruning is exact in float32: a box's distance is computed by the same rounded operations as a
// point's, and each of them is monotonic, so it never exceeds the distance of a point in the box.
#include "common/point_index.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "common/simd.h"

namespace mmad_fast {
namespace detail {

constexpr int64_t kLeafSize = 32;

inline NeighborKey key_of(float squared_distance, uint32_t index) {
  return (static_cast<NeighborKey>(float_bits(squared_distance)) << 32) | index;
}

// Appends the leaf's keys below the bound; there is room for a whole leaf.
MMAD_FAST_MULTIVERSION int64_t scan_leaf(const float* __restrict leaf,
                                         const uint32_t* __restrict index, float qx, float qy,
                                         float qz, NeighborKey bound, NeighborKey* __restrict out) {
  int32_t bits[kLeafSize];
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const float dx = leaf[i] - qx;
    const float dy = leaf[i + kLeafSize] - qy;
    const float dz = leaf[i + 2 * kLeafSize] - qz;
    bits[i] = float_bits((dx * dx + dy * dy) + dz * dz);
  }
  int64_t count = 0;
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const NeighborKey key = (static_cast<NeighborKey>(bits[i]) << 32) | index[i];
    out[count] = key;
    count += key < bound;
  }
  return count;
}

}  // namespace detail

using detail::kLeafSize;

struct PointIndex::Search {
  const float* query;
  int64_t k;
  NeighborKey* found;
  int64_t limit;      // more keys than this are cut back to k
  int64_t count = 0;  // keys in found
  // No key at or above it is wanted. It starts at an infinite distance, where leaves are padded.
  NeighborKey bound = detail::key_of(std::numeric_limits<float>::infinity(), 0);

  void keep_nearest() {
    std::nth_element(found, found + (k - 1), found + count);
    count = k;
    bound = found[k - 1];
  }

  NeighborKey box_key(const Node& node) const {
    float side[3];
    for (int axis = 0; axis < 3; ++axis) {
      const float below = node.low[axis] - query[axis], above = query[axis] - node.high[axis];
      side[axis] = std::max(std::max(below, above), 0.0f);
    }
    return detail::key_of((side[0] * side[0] + side[1] * side[1]) + side[2] * side[2], 0);
  }
};

PointIndex::PointIndex(const float* points, int64_t num_points) {
  std::vector<uint32_t> order(num_points);
  std::iota(order.begin(), order.end(), 0u);
  if (num_points > 0) build(points, order.data(), order.data() + num_points);
}

int32_t PointIndex::build(const float* points, uint32_t* begin, uint32_t* end) {
  Node node;
  for (int axis = 0; axis < 3; ++axis) {
    float low = std::numeric_limits<float>::infinity(), high = -low;
    for (const uint32_t* i = begin; i != end; ++i) {
      const float value = points[3 * static_cast<int64_t>(*i) + axis];
      low = std::min(low, value);
      high = std::max(high, value);
    }
    node.low[axis] = low;
    node.high[axis] = high;
  }
  node.leaf = node.right = -1;
  const int32_t number = static_cast<int32_t>(nodes_.size());
  nodes_.push_back(node);
  const int64_t count = end - begin;
  if (count <= kLeafSize) {
    nodes_[number].leaf = static_cast<int32_t>(leaf_index_.size() / kLeafSize);
    add_leaf(points, begin, end);
    return number;
  }
  int longest = 0;
  for (int axis = 1; axis < 3; ++axis) {
    if (node.high[axis] - node.low[axis] > node.high[longest] - node.low[longest]) longest = axis;
  }
  // Full leaves on the left: the padding is in the last leaf only.
  const int64_t half = (count / 2 + kLeafSize - 1) / kLeafSize * kLeafSize;
  std::nth_element(begin, begin + half, end, [&](uint32_t a, uint32_t b) {
    return points[3 * static_cast<int64_t>(a) + longest] <
           points[3 * static_cast<int64_t>(b) + longest];
  });
  build(points, begin, begin + half);
  const int32_t right = build(points, begin + half, end);
  nodes_[number].right = right;
  return number;
}

void PointIndex::add_leaf(const float* points, const uint32_t* begin, const uint32_t* end) {
  const size_t at = leaf_index_.size();
  leaf_index_.resize(at + kLeafSize, 0);
  leaf_points_.resize(3 * (at + kLeafSize), std::numeric_limits<float>::infinity());
  for (const uint32_t* i = begin; i != end; ++i) {
    const int64_t slot = i - begin;
    leaf_index_[at + slot] = *i;
    for (int axis = 0; axis < 3; ++axis) {
      leaf_points_[3 * at + axis * kLeafSize + slot] = points[3 * static_cast<int64_t>(*i) + axis];
    }
  }
}

void PointIndex::visit(int32_t number, Search& search) const {
  const Node& node = nodes_[number];
  if (node.leaf >= 0) {
    const int64_t at = node.leaf * kLeafSize;
    search.count +=
        detail::scan_leaf(&leaf_points_[3 * at], &leaf_index_[at], search.query[0], search.query[1],
                          search.query[2], search.bound, search.found + search.count);
    if (search.count > search.limit) search.keep_nearest();
    return;
  }
  int32_t near = number + 1, far = node.right;
  NeighborKey near_key = search.box_key(nodes_[near]), far_key = search.box_key(nodes_[far]);
  if (far_key < near_key) {
    std::swap(near, far);
    std::swap(near_key, far_key);
  }
  if (near_key < search.bound) visit(near, search);
  if (far_key < search.bound) visit(far, search);
}

void PointIndex::nearest(const float* query, int64_t k, std::vector<NeighborKey>& found) const {
  Search search;
  search.query = query;
  search.k = k;
  search.limit = k + k / 2;
  found.resize(std::max<size_t>(found.size(), search.limit + kLeafSize));
  search.found = found.data();
  visit(0, search);
  std::nth_element(search.found, search.found + (k - 1), search.found + search.count);
  std::sort(search.found, search.found + k);
}

}  // namespace mmad_fast
