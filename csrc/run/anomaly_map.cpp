#include "run/anomaly_map.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <stdexcept>

#include "common/pairwise_sum.h"
#include "common/simd.h"

namespace mmad_fast {
namespace anomaly_map_kernels {

// out[x] = sum_k weights[k] * source[x + k * step] over count values; the weights are symmetric,
// and equal ones are multiplied once.
MMAD_FAST_MULTIVERSION void correlate(const float* __restrict__ source, int64_t step,
                                      const float* weights, int64_t num_weights,
                                      float* __restrict__ out, int64_t count) {
  const int64_t last = num_weights - 1, radius = last / 2;
  if (weights[0] == weights[radius]) {
    for (int64_t x = 0; x < count; ++x) out[x] = source[x] + source[x + step];
    for (int64_t k = 2; k <= last; ++k) {
      for (int64_t x = 0; x < count; ++x) out[x] += source[x + k * step];
    }
    for (int64_t x = 0; x < count; ++x) out[x] *= weights[0];
    return;
  }
  for (int64_t x = 0; x < count; ++x) out[x] = source[x + radius * step] * weights[radius];
  for (int64_t k = 0; k < radius; ++k) {
    const float *low = source + k * step, *high = source + (last - k) * step;
    for (int64_t x = 0; x < count; ++x) out[x] += weights[k] * (low[x] + high[x]);
  }
}

}  // namespace anomaly_map_kernels

namespace {

constexpr double kGaussianSigma = 4.0;
constexpr int64_t kGaussianRadius = 16;  // 6e-5 of its mass is outside; rescaled to sum to 1
constexpr int64_t kSummedAtOnce = 8192;  // values that NumPy converts before it sums them

// The filters of a smoothing, one after the other, each along both axes; of odd length.
using Filters = std::vector<std::vector<float>>;

std::vector<float> gaussian() {
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

Filters boxes(const std::vector<int64_t>& sides) {
  Filters filters;
  for (const int64_t side : sides) {
    filters.emplace_back(side, static_cast<float>(1.0 / static_cast<double>(side)));
  }
  return filters;
}

const Filters& filters_of(const std::string& smoothing) {
  static const std::map<std::string, Filters> known = {{"boxes53", boxes({5, 5, 5, 5, 5, 7, 7, 7})},
                                                       {"sigma4", {gaussian()}}};
  const auto found = known.find(smoothing);
  if (found == known.end()) throw std::invalid_argument("no smoothing '" + smoothing + "'");
  return found->second;
}

// A part of a map: rows and columns [first, end).
struct Window {
  int64_t first_row, end_row, first_column, end_column;

  int64_t height() const { return end_row - first_row; }
  int64_t width() const { return end_column - first_column; }
};

// The non-zero pixels of the map and all within reach of them.
Window reached_window(const float* map, int64_t side, int64_t reach) {
  Window window{side, 0, side, 0};
  for (int64_t y = 0; y < side; ++y) {
    for (int64_t x = 0; x < side; ++x) {
      if (map[y * side + x] == 0) continue;
      window.first_row = std::min(window.first_row, y);
      window.end_row = y + 1;
      window.first_column = std::min(window.first_column, x);
      window.end_column = std::max(window.end_column, x + 1);
    }
  }
  if (window.end_row == 0) return {0, 0, 0, 0};
  return {std::max<int64_t>(0, window.first_row - reach), std::min(side, window.end_row + reach),
          std::max<int64_t>(0, window.first_column - reach),
          std::min(side, window.end_column + reach)};
}

// The zero-padded convolution of an image (height, width) along both axes, columns first.
void convolve(std::vector<float>& image, int64_t height, int64_t width,
              const std::vector<float>& weights) {
  const auto count = static_cast<int64_t>(weights.size()), radius = count / 2;
  const int64_t padded_width = width + 2 * radius;
  std::vector<float> high((height + 2 * radius) * width), wide(height * padded_width);
  std::copy(image.begin(), image.end(), high.begin() + radius * width);
  for (int64_t y = 0; y < height; ++y) {
    float* row = &wide[y * padded_width];
    anomaly_map_kernels::correlate(&high[y * width], width, weights.data(), count, row + radius,
                                   width);
    anomaly_map_kernels::correlate(row, 1, weights.data(), count, &image[y * width], width);
  }
}

}  // namespace

void aggregate(const std::string& aggregation, const float* psi_2d, const float* psi_3d,
               int64_t count, float* combined) {
  const auto each = [&](auto combine) {
    for (int64_t i = 0; i < count; ++i) combined[i] = combine(psi_2d[i], psi_3d[i]);
  };
  if (aggregation == "psi_2d") {
    std::copy_n(psi_2d, count, combined);
  } else if (aggregation == "psi_3d") {
    std::copy_n(psi_3d, count, combined);
  } else if (aggregation == "product") {
    each([](float a, float b) { return a * b; });
  } else if (aggregation == "sum") {
    each([](float a, float b) { return a + b; });
  } else if (aggregation == "max") {
    each([](float a, float b) { return std::max(a, b); });
  } else {
    throw std::invalid_argument("no aggregation '" + aggregation + "'");
  }
}

RepresentativePixels representative_pixels(const int64_t* pixel_indices, int64_t num_pixels,
                                           int64_t grid_size, int64_t stride) {
  const int64_t blocks_per_row = (grid_size + stride - 1) / stride;
  struct Block {
    int64_t
        offset;  // of its representative from the centre: twice, squared, so that ties are exact
    int64_t position = -1;
    int64_t number;
  };
  std::vector<Block> blocks(blocks_per_row * blocks_per_row);
  RepresentativePixels pixels{{}, std::vector<int64_t>(num_pixels)};
  for (int64_t i = 0; i < num_pixels; ++i) {
    const int64_t row = pixel_indices[i] / grid_size, column = pixel_indices[i] % grid_size;
    const int64_t down = 2 * (row % stride) - stride + 1;
    const int64_t right = 2 * (column % stride) - stride + 1;
    const int64_t offset = down * down + right * right;
    pixels.number[i] = row / stride * blocks_per_row + column / stride;
    Block& block = blocks[pixels.number[i]];
    if (block.position < 0 || offset < block.offset) block = {offset, i, 0};
  }
  for (Block& block : blocks) {
    block.number = static_cast<int64_t>(pixels.positions.size());
    if (block.position >= 0) pixels.positions.push_back(block.position);
  }
  for (int64_t& number : pixels.number) number = blocks[number].number;
  return pixels;
}

void smooth_map(const std::string& smoothing, int64_t side, float* map) {
  const Filters& filters = filters_of(smoothing);
  int64_t reach = 0;
  for (const auto& weights : filters) reach += static_cast<int64_t>(weights.size()) / 2;
  const Window window = reached_window(map, side, reach);
  const int64_t height = window.height(), width = window.width();
  float* first = map + window.first_row * side + window.first_column;
  std::vector<float> image(height * width);
  for (int64_t y = 0; y < height; ++y) std::copy_n(first + y * side, width, &image[y * width]);
  for (const auto& weights : filters) convolve(image, height, width, weights);
  for (int64_t y = 0; y < height; ++y) std::copy_n(&image[y * width], width, first + y * side);
}

double mean_of_nonzero(const float* values, int64_t count) {
  const auto num_nonzero = count - std::count(values, values + count, 0.0f);
  double sum = 0;
  for (int64_t i = 0; i < count; i += kSummedAtOnce) {
    sum += pairwise_sum<double>(values + i, std::min(kSummedAtOnce, count - i));
  }
  return num_nonzero == 0 ? 0.0 : sum / static_cast<double>(num_nonzero);
}

}  // namespace mmad_fast
