// Inverse distance interpolation on the CPU.
//
// Weights: leaf by leaf of a PointIndex over the points. A centre can be among the three nearest of
// a point in a box only if it is no farther from the box than the third smallest of the distances
// from a centre to the far corner of the box. The centres that are left, first for a block of
// leaves, then for a leaf, are inserted one by one, in ascending order, into the three nearest of
// all points of the leaf at once. float32 by direct differences, (dx*dx + dy*dy) + dz*dz; the far
// corner's distance is rounded like a point's, too, so it is never below that of a point in the
// box.
//
// Pooled rows: the 3 x 3 mean and the adaptive mean are separable, so an output pixel is a weighted
// sum over a rectangle of the grid with weights row_weight * column_weight. Entries are added up in
// float64 in one slot per centre; each band of output rows has its own slots and result, and the
// bands are joined at the end.
#include <algorithm>
#include <limits>

#include "common/parallel.h"
#include "common/point_index.h"
#include "inverse_distance_interpolation/op.h"

namespace mmad_fast {
namespace detail {

// Some of the centres, ascending by index, in memory for all of them.
struct Candidates {
  AlignedFloats x, y, z;
  AlignedInts index;
  int64_t count = 0;

  explicit Candidates(int64_t num_centers)
      : x(num_centers), y(num_centers), z(num_centers), index(num_centers) {}
};

struct Box {
  float low[3], high[3];
};

Box box_of(const BoxGroup& boxes, int64_t number) {
  Box box;
  for (int axis = 0; axis < 3; ++axis) {
    box.low[axis] = boxes.low[axis][number];
    box.high[axis] = boxes.high[axis][number];
  }
  return box;
}

// The three nearest centres of a leaf's points: squared distances as bits, ascending.
struct alignas(64) LeafNeighbors {
  int32_t distance[3][kLeafSize];
  int32_t index[3][kLeafSize];
};

// The squared distances from each candidate to the nearest and to the farthest point of a box, as
// bits.
MMAD_FAST_MULTIVERSION void box_distances(const Box& box, const float* __restrict x,
                                          const float* __restrict y, const float* __restrict z,
                                          int64_t count, int32_t* __restrict nearest,
                                          int32_t* __restrict farthest) {
  const Box b = box;
  for (int64_t i = 0; i < count; ++i) {
    const float low_x = b.low[0] - x[i], low_y = b.low[1] - y[i], low_z = b.low[2] - z[i];
    const float high_x = x[i] - b.high[0], high_y = y[i] - b.high[1], high_z = z[i] - b.high[2];
    const float far_x = low_x < high_x ? low_x : high_x, far_y = low_y < high_y ? low_y : high_y,
                far_z = low_z < high_z ? low_z : high_z;
    float near_x = low_x > high_x ? low_x : high_x, near_y = low_y > high_y ? low_y : high_y,
          near_z = low_z > high_z ? low_z : high_z;
    near_x = near_x > 0.0f ? near_x : 0.0f;
    near_y = near_y > 0.0f ? near_y : 0.0f;
    near_z = near_z > 0.0f ? near_z : 0.0f;
    nearest[i] = float_bits((near_x * near_x + near_y * near_y) + near_z * near_z);
    farthest[i] = float_bits((far_x * far_x + far_y * far_y) + far_z * far_z);
  }
}

inline int32_t third_smallest(const int32_t* values, int64_t count) {
  int32_t smallest[3];
  std::fill(smallest, smallest + 3, std::numeric_limits<int32_t>::max());
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] >= smallest[2]) continue;
    smallest[2] = values[i];
    if (smallest[2] < smallest[1]) std::swap(smallest[1], smallest[2]);
    if (smallest[1] < smallest[0]) std::swap(smallest[0], smallest[1]);
  }
  return smallest[2];
}

// Finds which centres can matter to a box. One per thread.
class CandidateFilter {
 public:
  explicit CandidateFilter(int64_t num_centers) : nearest_(num_centers), farthest_(num_centers) {}

  // Of the given candidates, those that may be among the three nearest of a point in the box.
  void apply(const Candidates& from, const Box& box, Candidates& to) {
    box_distances(box, from.x.data(), from.y.data(), from.z.data(), from.count, nearest_.data(),
                  farthest_.data());
    const int32_t bound = third_smallest(farthest_.data(), from.count);
    int64_t count = 0;
    for (int64_t i = 0; i < from.count; ++i) {
      to.x[count] = from.x[i];
      to.y[count] = from.y[i];
      to.z[count] = from.z[i];
      to.index[count] = from.index[i];
      count += nearest_[i] <= bound;
    }
    to.count = count;
  }

 private:
  AlignedInts nearest_, farthest_;
};

// One centre against all points of a leaf: of equals the one that came first stays.
inline MMAD_FAST_ALWAYS_INLINE void insert_center(const float* __restrict leaf, float x, float y,
                                                  float z, int32_t center,
                                                  LeafNeighbors& __restrict neighbors) {
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const float dx = leaf[i] - x, dy = leaf[i + kLeafSize] - y, dz = leaf[i + 2 * kLeafSize] - z;
    const int32_t distance = float_bits((dx * dx + dy * dy) + dz * dz);
    const int32_t first = neighbors.distance[0][i], second = neighbors.distance[1][i],
                  third = neighbors.distance[2][i];
    const int32_t first_index = neighbors.index[0][i], second_index = neighbors.index[1][i],
                  third_index = neighbors.index[2][i];
    neighbors.distance[0][i] = distance < first ? distance : first;
    neighbors.index[0][i] = distance < first ? center : first_index;
    neighbors.distance[1][i] = distance < first ? first : distance < second ? distance : second;
    neighbors.index[1][i] = distance < first    ? first_index
                            : distance < second ? center
                                                : second_index;
    neighbors.distance[2][i] = distance < second ? second : distance < third ? distance : third;
    neighbors.index[2][i] = distance < second  ? second_index
                            : distance < third ? center
                                               : third_index;
  }
}

MMAD_FAST_MULTIVERSION void find_three_nearest(const float* leaf, const Candidates& centers,
                                               LeafNeighbors& neighbors) {
  std::fill(neighbors.distance[0], neighbors.distance[0] + 3 * kLeafSize,
            std::numeric_limits<int32_t>::max());
  for (int64_t g = 0; g < centers.count; ++g) {
    insert_center(leaf, centers.x[g], centers.y[g], centers.z[g], centers.index[g], neighbors);
  }
}

struct alignas(64) LeafWeights {
  float weight[3][kLeafSize];
};

MMAD_FAST_MULTIVERSION void weigh(const LeafNeighbors& neighbors, LeafWeights& weights) {
  constexpr float kEpsilon = 1e-8f;  // square metres
  for (int64_t i = 0; i < kLeafSize; ++i) {
    const float w0 = 1.0f / (__builtin_bit_cast(float, neighbors.distance[0][i]) + kEpsilon);
    const float w1 = 1.0f / (__builtin_bit_cast(float, neighbors.distance[1][i]) + kEpsilon);
    const float w2 = 1.0f / (__builtin_bit_cast(float, neighbors.distance[2][i]) + kEpsilon);
    const float sum = (w0 + w1) + w2;
    weights.weight[0][i] = w0 / sum;
    weights.weight[1][i] = w1 / sum;
    weights.weight[2][i] = w2 / sum;
  }
}

// features (G, C), three rows of them, weighted, into row (C).
MMAD_FAST_MULTIVERSION void combine(const float* __restrict first, const float* __restrict second,
                                    const float* __restrict third, const float* weights,
                                    int64_t num_channels, float* __restrict row) {
  const float w0 = weights[0], w1 = weights[1], w2 = weights[2];
  for (int64_t c = 0; c < num_channels; ++c) {
    row[c] = (w0 * first[c] + w1 * second[c]) + w2 * third[c];
  }
}

}  // namespace detail

namespace {

using detail::Candidates;

constexpr int64_t kBlocksAtATime = 4;

detail::Box block_box(const PointIndex& index, int64_t block) {
  return detail::box_of(index.block_boxes[block / kBoxesPerGroup], block % kBoxesPerGroup);
}

detail::Box union_of_boxes(const PointIndex& index, int64_t begin, int64_t end) {
  detail::Box box = block_box(index, begin);
  for (int64_t block = begin + 1; block < end; ++block) {
    const detail::Box other = block_box(index, block);
    for (int axis = 0; axis < 3; ++axis) {
      box.low[axis] = std::min(box.low[axis], other.low[axis]);
      box.high[axis] = std::max(box.high[axis], other.high[axis]);
    }
  }
  return box;
}

Candidates all_candidates(const float* centers, int64_t num_centers) {
  Candidates all(num_centers);
  for (int64_t g = 0; g < num_centers; ++g) {
    all.x[g] = centers[3 * g];
    all.y[g] = centers[3 * g + 1];
    all.z[g] = centers[3 * g + 2];
    all.index[g] = static_cast<int32_t>(g);
  }
  all.count = num_centers;
  return all;
}

// Calls visit(point, three centres, three weights) for every point, from all threads.
template <typename Visit>
void for_each_point(const PointIndex& index, const float* centers, int64_t num_centers,
                    const Visit& visit) {
  const Candidates all = all_candidates(centers, num_centers);
  parallel_for(index.num_blocks, kBlocksAtATime, [&](int64_t begin, int64_t end) {
    detail::CandidateFilter filter(num_centers);
    Candidates near_blocks(num_centers), near_block(num_centers), near_leaf(num_centers);
    filter.apply(all, union_of_boxes(index, begin, end), near_blocks);
    detail::LeafNeighbors neighbors;
    detail::LeafWeights weights;
    for (int64_t block = begin; block < end; ++block) {
      filter.apply(near_blocks, block_box(index, block), near_block);
      for (int64_t i = 0; i < index.leaf_counts[block]; ++i) {
        const int64_t leaf = block * kBoxesPerGroup + i;
        filter.apply(near_block, detail::box_of(index.leaf_boxes[block], i), near_leaf);
        detail::find_three_nearest(index.leaf_coordinates(leaf), near_leaf, neighbors);
        detail::weigh(neighbors, weights);
        const uint32_t* points = index.leaf_indices(leaf);
        for (int64_t p = 0; p < kLeafSize && points[p] != kNoPoint; ++p) {
          const int32_t nearest[3] = {neighbors.index[0][p], neighbors.index[1][p],
                                      neighbors.index[2][p]};
          const float weight[3] = {weights.weight[0][p], weights.weight[1][p],
                                   weights.weight[2][p]};
          visit(static_cast<int64_t>(points[p]), nearest, weight);
        }
      }
    }
  });
}

// The weights with which one axis of the grid enters the outputs along that axis.
struct AxisWindows {
  std::vector<int64_t> begin;                // (output_size) first grid position
  std::vector<std::vector<double>> weights;  // (output_size) of consecutive grid positions
};

AxisWindows axis_windows(int64_t grid_size, int64_t output_size) {
  const int64_t smoothed_size = grid_size - 2;
  AxisWindows windows;
  for (int64_t k = 0; k < output_size; ++k) {
    const int64_t begin = k * smoothed_size / output_size;
    const int64_t end = ((k + 1) * smoothed_size + output_size - 1) / output_size;
    // Each smoothed position is the mean of three grid positions.
    std::vector<double> weights(end - begin + 2, 0.0);
    for (int64_t t = 0; t < end - begin; ++t) {
      for (int64_t shift = 0; shift < 3; ++shift) weights[t + shift] += 1.0;
    }
    for (double& weight : weights) weight /= 3.0 * static_cast<double>(end - begin);
    windows.begin.push_back(begin);
    windows.weights.push_back(std::move(weights));
  }
  return windows;
}

// Adds up the entries of one output pixel: a slot per centre, and which slots are in use.
class RowSum {
 public:
  explicit RowSum(int64_t num_centers) : slots_(num_centers, 0.0), in_use_(num_centers, 0) {}

  void add(int64_t center, double value) {
    if (!in_use_[center]) {
      in_use_[center] = 1;
      used_.push_back(static_cast<int32_t>(center));
    }
    slots_[center] += value;
  }

  // Moves the sum to the end of `rows` and starts anew; a sum of nothing adds no row.
  void flush(int64_t pixel, PooledRows& rows) {
    if (used_.empty()) return;
    std::sort(used_.begin(), used_.end());
    for (const int32_t center : used_) {
      rows.rows.columns.push_back(center);
      rows.rows.values.push_back(static_cast<float>(slots_[center]));
      slots_[center] = 0.0;
      in_use_[center] = 0;
    }
    used_.clear();
    rows.pixel_indices.push_back(pixel);
    rows.rows.offsets.push_back(static_cast<int64_t>(rows.rows.columns.size()));
  }

 private:
  std::vector<double> slots_;
  std::vector<char> in_use_;
  std::vector<int32_t> used_;
};

PooledRows join(const std::vector<PooledRows>& bands) {
  PooledRows all;
  size_t num_rows = 0, num_entries = 0;
  for (const PooledRows& band : bands) {
    num_rows += band.pixel_indices.size();
    num_entries += band.rows.columns.size();
  }
  all.pixel_indices.reserve(num_rows);
  SparseRows& rows = all.rows;
  rows.offsets.reserve(num_rows + 1);
  rows.columns.reserve(num_entries);
  rows.values.reserve(num_entries);
  for (const PooledRows& band : bands) {
    const int64_t before = rows.offsets.back();
    for (auto offset = band.rows.offsets.begin() + 1; offset != band.rows.offsets.end(); ++offset) {
      rows.offsets.push_back(before + *offset);
    }
    all.pixel_indices.insert(all.pixel_indices.end(), band.pixel_indices.begin(),
                             band.pixel_indices.end());
    rows.columns.insert(rows.columns.end(), band.rows.columns.begin(), band.rows.columns.end());
    rows.values.insert(rows.values.end(), band.rows.values.begin(), band.rows.values.end());
  }
  return all;
}

}  // namespace

void inverse_distance_weights(const PointIndex& index, const float* centers, int64_t num_centers,
                              int64_t* indices, float* weights) {
  for_each_point(index, centers, num_centers,
                 [&](int64_t point, const int32_t* nearest, const float* weight) {
                   for (int k = 0; k < 3; ++k) {
                     indices[3 * point + k] = nearest[k];
                     weights[3 * point + k] = weight[k];
                   }
                 });
}

void inverse_distance_interpolation(const PointIndex& index, const float* centers,
                                    int64_t num_centers, const float* features,
                                    int64_t num_channels, float* dense) {
  for_each_point(
      index, centers, num_centers, [&](int64_t point, const int32_t* nearest, const float* weight) {
        detail::combine(features + nearest[0] * num_channels, features + nearest[1] * num_channels,
                        features + nearest[2] * num_channels, weight, num_channels,
                        dense + point * num_channels);
      });
}

PooledRows pooled_interpolation_rows(const int64_t* indices, const float* weights,
                                     const int64_t* pixel_indices, int64_t num_points,
                                     int64_t num_centers, int64_t grid_size, int64_t output_size) {
  std::vector<int64_t> point_at(grid_size * grid_size, -1);
  for (int64_t n = 0; n < num_points; ++n) point_at[pixel_indices[n]] = n;
  const AxisWindows windows = axis_windows(grid_size, output_size);
  const int64_t band_rows = 8;
  std::vector<PooledRows> bands((output_size + band_rows - 1) / band_rows);
  parallel_for(output_size, band_rows, [&](int64_t row_begin, int64_t row_end) {
    PooledRows& band = bands[row_begin / band_rows];
    RowSum sum(num_centers);
    for (int64_t r = row_begin; r < row_end; ++r) {
      for (int64_t c = 0; c < output_size; ++c) {
        for (size_t i = 0; i < windows.weights[r].size(); ++i) {
          const int64_t* row = point_at.data() + (windows.begin[r] + i) * grid_size;
          for (size_t j = 0; j < windows.weights[c].size(); ++j) {
            const int64_t point = row[windows.begin[c] + j];
            if (point < 0) continue;
            const double share = windows.weights[r][i] * windows.weights[c][j];
            for (int k = 0; k < 3; ++k) {
              sum.add(indices[3 * point + k], share * weights[3 * point + k]);
            }
          }
        }
        sum.flush(r * output_size + c, band);
      }
    }
  });
  return join(bands);
}

}  // namespace mmad_fast
