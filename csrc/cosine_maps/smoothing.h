// What the CPU and the CUDA kernels share: the distance of a pixel, and what a place of the result
// is made of, along one axis: bilinear upsampling and a Gaussian.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace mmad_fast {

constexpr double kMaxSigma = 64;
constexpr int kMaxRadius = 256;    // 4 * kMaxSigma
constexpr double kMinNorm = 1e-8;  // of a pixel's features, as torch has it

// One minus the cosine between two vectors, of their sums of products.
MMAD_FAST_HOST_DEVICE inline double cosine_distance(double product, double square, double other) {
  const double norm = std::sqrt(square), other_norm = std::sqrt(other);
  return 1 - product / ((norm < kMinNorm ? kMinNorm : norm) *
                        (other_norm < kMinNorm ? kMinNorm : other_norm));
}

// The Gaussian's weights by distance from its centre, cut at 4 sigma, summing to 1 over both sides.
struct GaussianTaps {
  int radius;
  double weights[kMaxRadius + 1];
};

inline GaussianTaps gaussian_taps(double sigma) {
  GaussianTaps taps{static_cast<int>(4 * sigma + 0.5), {1}};
  double sum = 1;
  for (int k = 1; k <= taps.radius; ++k) {
    taps.weights[k] = std::exp(-0.5 / (sigma * sigma) * (static_cast<double>(k) * k));
    sum += 2 * taps.weights[k];
  }
  for (int k = 0; k <= taps.radius; ++k) taps.weights[k] /= sum;
  return taps;
}

// The two cells of a grid between which a place of the upsampled one is.
struct CellPair {
  int lower, upper;
  double upper_weight;
};

MMAD_FAST_HOST_DEVICE inline CellPair cells_of(int64_t place, int64_t size, int64_t num_cells,
                                               bool align_corners) {
  double position = 0;
  if (!align_corners) {
    const double middle = (static_cast<double>(place) + 0.5) * static_cast<double>(num_cells);
    position = middle / static_cast<double>(size) - 0.5;
  } else if (size > 1) {
    position = static_cast<double>(place * (num_cells - 1)) / static_cast<double>(size - 1);
  }
  const double last = static_cast<double>(num_cells - 1);
  position = position < 0 ? 0 : position > last ? last : position;
  const int lower = static_cast<int>(position);
  return {lower, lower + 1 < num_cells ? lower + 1 : lower, position - lower};
}

// A place beyond the border, mirrored with the border's own value repeated, as often as it takes.
MMAD_FAST_HOST_DEVICE inline int64_t mirrored(int64_t place, int64_t size) {
  if (place >= 0 && place < size) return place;
  const int64_t period = 2 * size, folded = (place % period + period) % period;
  return folded < size ? folded : period - 1 - folded;
}

}  // namespace mmad_fast
