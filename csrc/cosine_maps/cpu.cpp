// Cosine maps on the CPU. First the distances of all levels' pixels, a run of pixels at a time:
// vectors lie across the pixels, every feature is read once. Then the rows of the result: of each
// level its rows are combined, and each cell of that adds its column of the upsampled Gaussian.
// Everything is summed in float64 and in a fixed order, so the result depends neither on the number
// of threads nor on the instruction set; the features' memory bounds the time.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "common/parallel.h"
#include "common/simd.h"
#include "cosine_maps/op.h"
#include "cosine_maps/smoothing.h"

namespace mmad_fast {
namespace cosine_maps_kernels {

constexpr int64_t kRun = 64;  // pixels: their sums stay in the first level cache

// Distances of `count` <= kRun pixels; channels are `stride` floats apart.
MMAD_FAST_MULTIVERSION void measure_run(const float* __restrict__ target,
                                        const float* __restrict__ restored, int64_t channels,
                                        int64_t stride, int64_t count,
                                        double* __restrict__ distances) {
  double products[kRun] = {}, target_squares[kRun] = {}, restored_squares[kRun] = {};
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < count; ++i) {
      const double a = target[c * stride + i], b = restored[c * stride + i];
      products[i] += a * b;
      target_squares[i] += a * a;
      restored_squares[i] += b * b;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    distances[i] = cosine_distance(products[i], target_squares[i], restored_squares[i]);
  }
}

// sums[i] += factor * values[i].
MMAD_FAST_MULTIVERSION void add_scaled(double factor, const double* __restrict__ values,
                                       int64_t count, double* __restrict__ sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += factor * values[i];
}

}  // namespace cosine_maps_kernels

namespace {

using cosine_maps_kernels::kRun;

// Of one axis the weight (num_cells, size) of each cell in each place of the result, and the places
// from the first to behind the last where it is not 0.
struct CellWeights {
  int64_t size;
  std::vector<double> weights;
  std::vector<int64_t> first, end;

  CellWeights(int64_t num_cells, int64_t size, const GaussianTaps& taps, bool align_corners)
      : size(size), weights(num_cells * size), first(num_cells, size), end(num_cells, 0) {
    std::vector<CellPair> pairs(size);
    for (int64_t place = 0; place < size; ++place) {
      pairs[place] = cells_of(place, size, num_cells, align_corners);
    }
    for (int64_t place = 0; place < size; ++place) {
      for (int64_t k = -taps.radius; k <= taps.radius; ++k) {
        const CellPair& pair = pairs[mirrored(place + k, size)];
        const double weight = taps.weights[std::abs(k)];
        add(pair.lower, place, weight * (1 - pair.upper_weight));
        add(pair.upper, place, weight * pair.upper_weight);
      }
    }
  }

  void add(int64_t cell, int64_t place, double weight) {
    weights[cell * size + place] += weight;
    first[cell] = std::min(first[cell], place);
    end[cell] = place + 1;
  }
};

struct Level {
  CosineLevel maps;
  CellWeights down, right;
  std::vector<double> distances;
  int64_t first_run;  // among those of all levels
};

// Adds a level's share of one row of the result.
void add_level(const Level& level, int64_t row, std::vector<double>& combined, double* sums) {
  const int64_t width = level.maps.width;
  std::fill_n(combined.begin(), width, 0.0);
  for (int64_t cell = 0; cell < level.maps.height; ++cell) {
    if (row < level.down.first[cell] || row >= level.down.end[cell]) continue;
    cosine_maps_kernels::add_scaled(level.down.weights[cell * level.down.size + row],
                                    &level.distances[cell * width], width, combined.data());
  }
  for (int64_t cell = 0; cell < width; ++cell) {
    const int64_t first = level.right.first[cell];
    cosine_maps_kernels::add_scaled(combined[cell],
                                    level.right.weights.data() + cell * level.right.size + first,
                                    level.right.end[cell] - first, sums + first);
  }
}

}  // namespace

void cosine_maps(const std::vector<CosineLevel>& levels, int64_t size, double sigma,
                 bool align_corners, float* map) {
  const GaussianTaps taps = gaussian_taps(sigma);
  std::vector<Level> all;
  int64_t num_runs = 0, largest_width = 0;
  for (const CosineLevel& maps : levels) {
    all.push_back({maps,
                   {maps.height, size, taps, align_corners},
                   {maps.width, size, taps, align_corners},
                   std::vector<double>(maps.num_pixels()),
                   num_runs});
    num_runs += (maps.num_pixels() + kRun - 1) / kRun;
    largest_width = std::max(largest_width, maps.width);
  }
  parallel_for(num_runs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      std::size_t number = all.size() - 1;
      while (all[number].first_run > run) --number;
      Level& level = all[number];
      const int64_t pixel = (run - level.first_run) * kRun, stride = level.maps.num_pixels();
      cosine_maps_kernels::measure_run(level.maps.target + pixel, level.maps.restored + pixel,
                                       level.maps.channels, stride, std::min(kRun, stride - pixel),
                                       &level.distances[pixel]);
    }
  });
  // A pixel that no place of the result reads must not go unnoticed either.
  for (const Level& level : all) {
    if (!std::all_of(level.distances.begin(), level.distances.end(),
                     [](double distance) { return std::isfinite(distance); })) {
      std::fill_n(map, size * size, std::numeric_limits<float>::quiet_NaN());
      return;
    }
  }
  parallel_for(size, 16, [&](int64_t begin, int64_t end) {
    std::vector<double> combined(largest_width), sums(size);
    for (int64_t row = begin; row < end; ++row) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (const Level& level : all) add_level(level, row, combined, sums.data());
      for (int64_t x = 0; x < size; ++x) map[row * size + x] = static_cast<float>(sums[x]);
    }
  });
}

}  // namespace mmad_fast
