// Leaf by leaf of the index, leaves shared among the threads. The first point of a leaf is searched
// for from the top; for the others the leaves around theirs are gathered once. Each starts with the
// bound that a searched point of its leaf gives it, of these the smallest: that one's distance to
// its last neighbour plus the distance between the two.
#include "common/point_neighbors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/neighbor_search.h"
#include "common/parallel.h"

namespace mmad_fast {
namespace detail {

// Wider than the rounding of float32 distances, denormal ones included. A bound that is too narrow
// nevertheless is noticed, because too few points are below it.
constexpr float kSlack = 1.00001f;
constexpr float kTiny = 1e-22f;

// The least of reaches[i] + distance to point i; coordinates as in a leaf.
MMAD_FAST_MULTIVERSION float smallest_reach(const float* __restrict leaf,
                                            const float* __restrict reaches, int64_t count,
                                            const float* query) {
  const float x = query[0], y = query[1], z = query[2];
  int32_t smallest = kInfiniteDistance;
  for (int64_t i = 0; i < count; ++i) {
    const float dx = leaf[i] - x, dy = leaf[i + kLeafSize] - y, dz = leaf[i + 2 * kLeafSize] - z;
    const int32_t reach = float_bits(reaches[i] + std::sqrt((dx * dx + dy * dy) + dz * dz));
    smallest = reach < smallest ? reach : smallest;
  }
  return __builtin_bit_cast(float, smallest);
}

inline int32_t squared_limit(float reach) {
  const float wider = reach * kSlack + kTiny, squared = wider * wider * kSlack;
  return squared < std::numeric_limits<float>::infinity() ? float_bits(squared) : kInfiniteDistance;
}

// Writes rows from keys.
struct RowWriter {
  int64_t row_length;
  int32_t* indices;
  float* squared_distances;
  int32_t* counts;

  void write(int64_t point, const NeighborKey* keys, int64_t count) const {
    int32_t* row = indices + point * row_length;
    float* squared = squared_distances + point * row_length;
    for (int64_t k = 0; k < count; ++k) {
      row[k] = static_cast<int32_t>(keys[k]);
      squared[k] = __builtin_bit_cast(float, distance_of(keys[k]));
    }
    std::fill(row + count, row + row_length, -1);
    std::fill(squared + count, squared + row_length, std::numeric_limits<float>::infinity());
    counts[point] = static_cast<int32_t>(count);
  }
};

class LeafSearch {
 public:
  LeafSearch(const PointIndex& index, int32_t limit, const RowWriter& writer)
      : index_(index), limit_(limit), writer_(writer), search_(index, writer.row_length, limit) {}

  void search(int64_t leaf) {
    const float* coordinates = index_.leaf_coordinates(leaf);
    const uint32_t* points = index_.leaf_indices(leaf);
    for (int64_t i = 0; i < kLeafSize && points[i] != kNoPoint; ++i) {
      const float* query = index_.points + 3 * static_cast<int64_t>(points[i]);
      const NeighborKey* keys = i == 0 ? search_.nearest(query) : nearest(query, coordinates, i);
      writer_.write(points[i], keys, search_.num_found());
      reaches_[i] =
          search_.num_found() < writer_.row_length
              ? std::sqrt(__builtin_bit_cast(float, limit_))
              : std::sqrt(__builtin_bit_cast(float, distance_of(keys[search_.num_found() - 1])));
      if (i == 0) gather(leaf, query);
    }
  }

 private:
  const NeighborKey* nearest(const float* query, const float* coordinates, int64_t num_searched) {
    const float reach = smallest_reach(coordinates, reaches_, num_searched, query);
    const int32_t limit = std::min(squared_limit(reach), gathered_reach_);
    const NeighborKey* keys = search_.nearest_gathered(query, limit);
    const bool is_complete = search_.num_found() == writer_.row_length || limit >= limit_;
    return is_complete ? keys : search_.nearest(query);
  }

  // What the leaf's points can reach, from the reach of the first.
  void gather(int64_t leaf, const float* first) {
    const BoxGroup& boxes = index_.leaf_boxes[leaf / kBoxesPerGroup];
    float low[3], high[3], across = 0;
    for (int axis = 0; axis < 3; ++axis) {
      low[axis] = boxes.low[axis][leaf % kBoxesPerGroup];
      high[axis] = boxes.high[axis][leaf % kBoxesPerGroup];
      const float side = std::max(first[axis] - low[axis], high[axis] - first[axis]);
      across += side * side;
    }
    gathered_reach_ = std::min(limit_, squared_limit(reaches_[0] + std::sqrt(across)));
    search_.gather_leaves(low, high, gathered_reach_);
  }

  const PointIndex& index_;
  const int32_t limit_;
  const RowWriter& writer_;
  NeighborSearch search_;
  float reaches_[kLeafSize];  // of the searched points of the leaf
  int32_t gathered_reach_ = 0;
};

}  // namespace detail

void find_point_neighbors(const PointIndex& index, int64_t row_length, float squared_radius,
                          int32_t* indices, float* squared_distances, int32_t* counts) {
  const detail::RowWriter writer{row_length, indices, squared_distances, counts};
  const int32_t limit = float_bits(squared_radius);
  parallel_for(index.num_blocks, 1, [&](int64_t begin, int64_t end) {
    detail::LeafSearch search(index, limit, writer);
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t i = 0; i < index.leaf_counts[block]; ++i) {
        search.search(block * kBoxesPerGroup + i);
      }
    }
  });
}

}  // namespace mmad_fast
