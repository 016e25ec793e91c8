#include "scoring.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

namespace mmad_fast_infer {
namespace {

// As in mmad_fast/methods/cfm/scoring.py.
const std::vector<int64_t> kBoxSides = {5, 5, 5, 5, 5, 7, 7, 7};
constexpr double kGaussianSigma = 4.0;
constexpr int64_t kGaussianRadius = 16;

float combine(const std::string& aggregation, float psi_2d, float psi_3d) {
  if (aggregation == "product") return psi_2d * psi_3d;
  if (aggregation == "sum") return psi_2d + psi_3d;
  return std::max(psi_2d, psi_3d);
}

std::vector<float> aggregate(const std::map<std::string, std::vector<float>>& psi,
                             const std::string& aggregation) {
  std::vector<float> combined = psi.begin()->second;
  if (psi.size() == 1) return combined;
  const std::vector<float>&psi_2d = psi.at("psi_2d"), &psi_3d = psi.at("psi_3d");
  for (std::size_t i = 0; i < combined.size(); ++i) {
    combined[i] = combine(aggregation, psi_2d[i], psi_3d[i]);
  }
  return combined;
}

// out[x] = sum_k weights[k] * source[x + k * step], weights symmetric; in the order of scoring.py.
void correlate(const float* source, int64_t step, const std::vector<float>& weights, float* out,
               int64_t width) {
  const auto last = static_cast<int64_t>(weights.size()) - 1, radius = last / 2;
  if (weights.front() == weights[radius]) {  // a box: multiplied once
    for (int64_t x = 0; x < width; ++x) out[x] = source[x] + source[x + step];
    for (int64_t k = 2; k <= last; ++k) {
      for (int64_t x = 0; x < width; ++x) out[x] += source[x + k * step];
    }
    for (int64_t x = 0; x < width; ++x) out[x] *= weights.front();
    return;
  }
  for (int64_t x = 0; x < width; ++x) out[x] = source[x + radius * step] * weights[radius];
  for (int64_t k = 0; k < radius; ++k) {
    const float *low = source + k * step, *high = source + (last - k) * step;
    for (int64_t x = 0; x < width; ++x) out[x] += weights[k] * (low[x] + high[x]);
  }
}

// The zero-padded convolution along both axes, columns first; map (side, side).
void convolve(std::vector<float>& map, int64_t side, const std::vector<float>& weights) {
  const auto radius = static_cast<int64_t>(weights.size()) / 2;
  const int64_t padded_side = side + 2 * radius;
  std::vector<float> high(padded_side * side), wide(side * padded_side);
  std::copy(map.begin(), map.end(), high.begin() + radius * side);
  for (int64_t y = 0; y < side; ++y) {
    correlate(&high[y * side], side, weights, &wide[y * padded_side + radius], side);
  }
  for (int64_t y = 0; y < side; ++y) {
    correlate(&wide[y * padded_side], 1, weights, &map[y * side], side);
  }
}

std::vector<float> gaussian_weights() {
  std::vector<double> weights(2 * kGaussianRadius + 1);
  for (int64_t k = -kGaussianRadius; k <= kGaussianRadius; ++k) {
    const double offset = static_cast<double>(k) / kGaussianSigma;
    weights[k + kGaussianRadius] = std::exp(-0.5 * offset * offset);
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<float> scaled(weights.size());
  for (std::size_t k = 0; k < weights.size(); ++k) scaled[k] = static_cast<float>(weights[k] / sum);
  return scaled;
}

void smooth(std::vector<float>& map, int64_t side, const std::string& smoothing) {
  if (smoothing == "sigma4") {
    convolve(map, side, gaussian_weights());
    return;
  }
  for (const int64_t box : kBoxSides) {
    const auto weight = static_cast<float>(1.0 / static_cast<double>(box));
    convolve(map, side, std::vector<float>(box, weight));
  }
}

// Divides by the root of the mean non-zero value; a map of zeros stays as it is.
void normalize(std::vector<float>& map) {
  const auto count = std::count_if(map.begin(), map.end(), [](float v) { return v != 0; });
  const double sum = std::accumulate(map.begin(), map.end(), 0.0);
  if (count == 0 || sum == 0) return;
  const auto divisor = static_cast<float>(std::sqrt(sum / static_cast<double>(count)));
  for (float& value : map) value /= divisor;
}

}  // namespace

EvaluatedPixels evaluated_pixels(const std::vector<int64_t>& pixel_indices,
                                 const Parameters& parameters) {
  const int64_t stride = parameters.pixel_stride, grid_size = parameters.grid_size;
  const int64_t blocks_per_row = (grid_size + stride - 1) / stride;
  const auto num_pixels = static_cast<int64_t>(pixel_indices.size());
  std::vector<std::tuple<int64_t, int64_t, int64_t>> order;  // block, offset from its centre, pixel
  for (int64_t i = 0; i < num_pixels; ++i) {
    const int64_t row = pixel_indices[i] / grid_size, column = pixel_indices[i] % grid_size;
    const int64_t down = 2 * (row % stride) - stride + 1;
    const int64_t right = 2 * (column % stride) - stride + 1;
    const int64_t block = row / stride * blocks_per_row + column / stride;
    order.emplace_back(block, down * down + right * right, i);
  }
  std::sort(order.begin(), order.end());
  EvaluatedPixels pixels{{}, std::vector<int64_t>(num_pixels)};
  int64_t last_block = -1;
  for (const auto& [block, offset, pixel] : order) {
    if (block != last_block) pixels.positions.push_back(pixel);
    last_block = block;
    pixels.owner[pixel] = static_cast<int64_t>(pixels.positions.size()) - 1;
  }
  return pixels;
}

std::vector<float> anomaly_map(const std::map<std::string, std::vector<float>>& psi,
                               const std::vector<int64_t>& pixel_indices,
                               const Parameters& parameters) {
  const int64_t side = parameters.grid_size;
  const std::vector<float> combined = aggregate(psi, parameters.aggregation);
  std::vector<float> map(side * side);
  for (std::size_t i = 0; i < combined.size(); ++i) map[pixel_indices[i]] = combined[i];
  smooth(map, side, parameters.smoothing);
  if (parameters.score_norm == "cfm") normalize(map);
  return map;
}

}  // namespace mmad_fast_infer
