// FPFH on the CPU, in two passes over the points, which are shared among the threads.
//
// First the bins of each point's pairs, in float64 and vectorised over its neighbours, are counted:
// the point's own histogram in percent. Then the neighbours' histograms are summed in float32 with
// their weights, in the order of the row. A histogram is stored as 32 channels, a whole number of
// vectors, and the last one by itself.
#include <algorithm>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "fpfh/op.h"
#include "fpfh/pair_bins.h"

namespace mmad_fast {
namespace detail {

constexpr int64_t kGrain = 128;
constexpr int64_t kMainChannels = kNumChannels - 1;
constexpr float kPercent = 100;

// The points' own histograms.
struct Histograms {
  explicit Histograms(int64_t num_points) {
    main.resize(num_points * kMainChannels);
    last.resize(num_points);
  }
  UninitializedVector<float> main;  // (N, 32)
  UninitializedVector<float> last;  // (N)
};

constexpr int64_t kLanes = 16;  // whole vectors of every instruction set

// The pairs of a point with its neighbours, filled up to whole vectors with pairs of points in one
// place, which are in the middle bins.
struct Pairs {
  explicit Pairs(int64_t size)
      : stride((size + kLanes - 1) / kLanes * kLanes),
        values(6 * stride),
        bins(kNumFeatures * stride) {}
  const int64_t stride;
  int64_t count = 0, padded = 0;
  std::vector<double> values;  // line x, y, z and neighbour's normal x, y, z, each for all
  std::vector<int32_t> bins;   // of theta, alpha, phi, each for all
};

void collect(const float* points, const double* normals, const float* point,
             const int32_t* neighbors, int64_t count, Pairs& pairs) {
  double* values = pairs.values.data();
  pairs.count = count;
  pairs.padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int value = 0; value < 6; ++value) {
    std::fill(values + value * pairs.stride + count, values + value * pairs.stride + pairs.padded,
              0.0);
  }
  for (int64_t k = 0; k < count; ++k) {
    const int64_t at = 3 * static_cast<int64_t>(neighbors[k]);
    for (int axis = 0; axis < 3; ++axis) {
      values[k + axis * pairs.stride] = static_cast<double>(points[at + axis]) - point[axis];
      values[k + (3 + axis) * pairs.stride] = normals[at + axis];
    }
  }
}

MMAD_FAST_MULTIVERSION void find_bins(const double* __restrict values, int64_t stride,
                                      int64_t count, const double* normal,
                                      int32_t* __restrict bins) {
  const double nx = normal[0], ny = normal[1], nz = normal[2];
  for (int64_t k = 0; k < count; ++k) {
    const PairBins found =
        pair_bins(values[k], values[k + stride], values[k + 2 * stride], nx, ny, nz,
                  values[k + 3 * stride], values[k + 4 * stride], values[k + 5 * stride]);
    bins[k] = found.theta;
    bins[k + stride] = found.alpha;
    bins[k + 2 * stride] = found.phi;
  }
}

// How often each bin of a feature is there.
MMAD_FAST_MULTIVERSION void count_each(const int32_t* __restrict bins, int64_t count,
                                       int32_t* __restrict counts) {
  for (int32_t b = 0; b < kNumBins; ++b) {
    int32_t total = 0;
    for (int64_t k = 0; k < count; ++k) total += bins[k] == b;
    counts[b] = total;
  }
}

void count_bins(const Pairs& pairs, float* main, float& last) {
  int32_t counts[kNumChannels];
  for (int feature = 0; feature < kNumFeatures; ++feature) {
    int32_t* of_feature = counts + feature * kNumBins;
    count_each(pairs.bins.data() + feature * pairs.stride, pairs.padded, of_feature);
    of_feature[kNumBins / 2] -= static_cast<int32_t>(pairs.padded - pairs.count);
  }
  const float percent = pairs.count > 0 ? kPercent / static_cast<float>(pairs.count) : 0;
  for (int64_t c = 0; c < kMainChannels; ++c) main[c] = static_cast<float>(counts[c]) * percent;
  last = static_cast<float>(counts[kMainChannels]) * percent;
}

// Sums (33) of the histograms of `count` neighbours, each times its weight.
MMAD_FAST_MULTIVERSION void weigh_histograms(const float* __restrict main,
                                             const float* __restrict last,
                                             const int32_t* __restrict neighbors,
                                             const float* __restrict weights, int64_t count,
                                             float* __restrict sums) {
  using Vector =
      float __attribute__((vector_size(16)));  // wider ones are slow where there are none
  constexpr int kVectors = kMainChannels / 4;
  Vector totals[kVectors] = {};
  float total = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t neighbor = neighbors[k];
    const Vector* row = reinterpret_cast<const Vector*>(main + neighbor * kMainChannels);
    for (int v = 0; v < kVectors; ++v) totals[v] += row[v] * weights[k];
    total += last[neighbor] * weights[k];
  }
  for (int c = 0; c < kMainChannels; ++c) sums[c] = totals[c / 4][c % 4];
  sums[kMainChannels] = total;
}

// 1 / squared distance, times that of the nearest so that it stays in range; 0 for a distance of 0.
MMAD_FAST_MULTIVERSION void find_weights(const float* __restrict squared_distances, int64_t count,
                                         float* __restrict weights) {
  int64_t first = 0;
  while (first < count && squared_distances[first] == 0) ++first;
  const float nearest = first < count ? squared_distances[first] : 0;
  for (int64_t k = 0; k < count; ++k) {
    const float squared = squared_distances[k];
    weights[k] = squared > 0 ? nearest / squared : 0;
  }
}

void add_own(const float* sums, const float* main, float last, float* features) {
  for (int feature = 0; feature < kNumFeatures; ++feature) {
    float total = 0;
    for (int c = 0; c < kNumBins; ++c) total += sums[feature * kNumBins + c];
    const float scale = total > 0 ? kPercent / total : 0;
    for (int c = feature * kNumBins; c < (feature + 1) * kNumBins; ++c) {
      features[c] = sums[c] * scale + (c < kMainChannels ? main[c] : last);
    }
  }
}

}  // namespace detail

void fpfh(const float* points, const double* normals, int64_t num_points,
          const NeighborRows& neighbors, float* features) {
  detail::Histograms own(num_points);
  std::vector<int32_t> counts(num_points);  // without the first
  parallel_for(num_points, detail::kGrain, [&](int64_t begin, int64_t end) {
    detail::Pairs pairs(neighbors.row_length);
    for (int64_t i = begin; i < end; ++i) {
      const int count = std::max(0, neighbors.count(i) - 1);
      detail::collect(points, normals, points + 3 * i, neighbors.row(i) + 1, count, pairs);
      detail::find_bins(pairs.values.data(), pairs.stride, pairs.padded, normals + 3 * i,
                        pairs.bins.data());
      detail::count_bins(pairs, own.main.data() + i * detail::kMainChannels, own.last[i]);
      counts[i] = count;
    }
  });
  parallel_for(num_points, detail::kGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> weights(neighbors.row_length);
    float sums[kNumChannels];
    for (int64_t i = begin; i < end; ++i) {
      detail::find_weights(neighbors.squared_row(i) + 1, counts[i], weights.data());
      detail::weigh_histograms(own.main.data(), own.last.data(), neighbors.row(i) + 1,
                               weights.data(), counts[i], sums);
      detail::add_own(sums, own.main.data() + i * detail::kMainChannels, own.last[i],
                      features + i * kNumChannels);
    }
  });
}

}  // namespace mmad_fast
