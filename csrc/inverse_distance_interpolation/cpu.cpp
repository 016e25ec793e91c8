// Inverse distance interpolation on the CPU.
//
// Weights: a k-d tree over the centres, one exact search per point. float32 by direct differences,
// (dx*dx + dy*dy) + dz*dz.
//
// Pooled rows: the 3 x 3 mean and the adaptive mean are separable, so an output pixel is a weighted
// sum over a rectangle of the grid with weights row_weight * column_weight. Entries are added up in
// float64 in one slot per centre; each band of output rows has its own slots and result, and the
// bands are joined at the end.
#include <algorithm>

#include "common/parallel.h"
#include "common/point_index.h"
#include "inverse_distance_interpolation/op.h"

namespace mmad_fast {
namespace {

constexpr float kEpsilon = 1e-8f;  // square metres

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
      rows.columns.push_back(center);
      rows.values.push_back(static_cast<float>(slots_[center]));
      slots_[center] = 0.0;
      in_use_[center] = 0;
    }
    used_.clear();
    rows.pixel_indices.push_back(pixel);
    rows.offsets.push_back(static_cast<int64_t>(rows.columns.size()));
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
    num_entries += band.columns.size();
  }
  all.pixel_indices.reserve(num_rows);
  all.offsets.reserve(num_rows + 1);
  all.columns.reserve(num_entries);
  all.values.reserve(num_entries);
  all.offsets.push_back(0);
  for (const PooledRows& band : bands) {
    const int64_t before = static_cast<int64_t>(all.columns.size());
    for (const int64_t offset : band.offsets) all.offsets.push_back(before + offset);
    all.pixel_indices.insert(all.pixel_indices.end(), band.pixel_indices.begin(),
                             band.pixel_indices.end());
    all.columns.insert(all.columns.end(), band.columns.begin(), band.columns.end());
    all.values.insert(all.values.end(), band.values.begin(), band.values.end());
  }
  return all;
}

}  // namespace

void inverse_distance_weights(const float* points, int64_t num_points, const float* centers,
                              int64_t num_centers, int64_t* indices, float* weights) {
  const PointIndex index(centers, num_centers);
  parallel_for(num_points, 512, [&](int64_t begin, int64_t end) {
    std::vector<NeighborKey> found;
    for (int64_t n = begin; n < end; ++n) {
      index.nearest(points + 3 * n, 3, found);
      float weight[3];
      for (int k = 0; k < 3; ++k) {
        indices[3 * n + k] = neighbor_index(found[k]);
        weight[k] = 1.0f / (neighbor_squared_distance(found[k]) + kEpsilon);
      }
      const float sum = (weight[0] + weight[1]) + weight[2];
      for (int k = 0; k < 3; ++k) weights[3 * n + k] = weight[k] / sum;
    }
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
