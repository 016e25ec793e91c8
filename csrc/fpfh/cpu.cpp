// FPFH on the CPU, in two passes over the points, which are shared among the threads.
//
// First the bins of each point's pairs, in float64 and vectorised over its neighbours, are counted:
// the point's own histogram in percent. Then the neighbours' histograms are summed in float32 with
// their weights, those of even and of odd places of the row apart. A histogram is stored as 32
// channels, a whole number of vectors, and the last one by itself.
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
constexpr int kInterleaved = 4;  // tables of counts, so that neighbours rarely wait for each other
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

// The pairs of a point with its neighbours.
struct Pairs {
  explicit Pairs(int64_t size) : stride(size), values(6 * size), bins(kNumFeatures * size) {}
  const int64_t stride;
  std::vector<double> values;  // line x, y, z and neighbour's normal x, y, z, each for all
  std::vector<int32_t> bins;   // channels of theta, alpha, phi, each for all
};

void collect(const float* points, const double* normals, const float* point,
             const int32_t* neighbors, int64_t count, Pairs& pairs) {
  double* values = pairs.values.data();
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
    bins[k + stride] = kNumBins + found.alpha;
    bins[k + 2 * stride] = 2 * kNumBins + found.phi;
  }
}

void count_bins(const Pairs& pairs, int64_t count, float* main, float& last) {
  int32_t counts[kInterleaved][kNumChannels] = {};
  for (int feature = 0; feature < kNumFeatures; ++feature) {
    const int32_t* bins = pairs.bins.data() + feature * pairs.stride;
    for (int64_t k = 0; k < count; ++k) ++counts[k % kInterleaved][bins[k]];
  }
  const float percent = kPercent / static_cast<float>(count);
  for (int64_t c = 0; c < kNumChannels; ++c) {
    const int32_t total = (counts[0][c] + counts[1][c]) + (counts[2][c] + counts[3][c]);
    const float share = count > 0 ? static_cast<float>(total) * percent : 0;
    (c < kMainChannels ? main[c] : last) = share;
  }
}

// Sums (33) of the histograms of `count` neighbours, each times its weight.
MMAD_FAST_MULTIVERSION void weigh_histograms(const float* __restrict main,
                                             const float* __restrict last,
                                             const int32_t* __restrict neighbors,
                                             const float* __restrict weights, int64_t count,
                                             float* __restrict sums) {
  using Vector = float __attribute__((vector_size(64)));
  Vector even_low{}, even_high{}, odd_low{}, odd_high{};
  float even_last = 0, odd_last = 0;
  int64_t k = 0;
  for (; k + 2 <= count; k += 2) {
    const int64_t even = neighbors[k], odd = neighbors[k + 1];
    const Vector* even_row = reinterpret_cast<const Vector*>(main + even * kMainChannels);
    const Vector* odd_row = reinterpret_cast<const Vector*>(main + odd * kMainChannels);
    even_low += even_row[0] * weights[k];
    even_high += even_row[1] * weights[k];
    odd_low += odd_row[0] * weights[k + 1];
    odd_high += odd_row[1] * weights[k + 1];
    even_last += last[even] * weights[k];
    odd_last += last[odd] * weights[k + 1];
  }
  if (k < count) {
    const int64_t even = neighbors[k];
    const Vector* even_row = reinterpret_cast<const Vector*>(main + even * kMainChannels);
    even_low += even_row[0] * weights[k];
    even_high += even_row[1] * weights[k];
    even_last += last[even] * weights[k];
  }
  const Vector low = even_low + odd_low, high = even_high + odd_high;
  for (int c = 0; c < 16; ++c) {
    sums[c] = low[c];
    sums[16 + c] = high[c];
  }
  sums[kMainChannels] = even_last + odd_last;
}

// 1 / squared distance, times that of the nearest so that it stays in range; 0 for a distance of 0.
void find_weights(const float* squared_distances, int64_t count, float* weights) {
  float nearest = 0;
  for (int64_t k = 0; k < count; ++k) {
    const float squared = squared_distances[k];
    if (nearest == 0) nearest = squared;
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
      detail::find_bins(pairs.values.data(), pairs.stride, count, normals + 3 * i,
                        pairs.bins.data());
      detail::count_bins(pairs, count, own.main.data() + i * detail::kMainChannels, own.last[i]);
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
