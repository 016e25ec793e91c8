// A separable filter with fixed-point taps and sums in int32, which is exact, so every thread count
// and instruction set gives the same image.
#include <algorithm>
#include <cmath>
#include <vector>

#include "bicubic_resizing/op.h"
#include "common/parallel.h"

namespace mmad_fast {
namespace {

constexpr int64_t kRowGrain = 8;
constexpr int kTapBits = 22;

// Keys' cubic convolution with a = -1/2, at a distance from the centre in (scaled) pixels.
double cubic(double distance) {
  const double x = std::fabs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0;
}

double triangle(double distance) { return std::max(0.0, 1 - std::fabs(distance)); }

// The inputs of each output along one side, and their fixed-point weights.
struct Taps {
  std::vector<int64_t> begins;   // (outputs,) first input
  std::vector<int64_t> lengths;  // (outputs,)
  std::vector<int32_t> weights;  // (outputs, stride)
  int64_t stride = 0;

  Taps(int64_t inputs, int64_t outputs, ResizingFilter filter) {
    const bool is_cubic = filter == ResizingFilter::kBicubic;
    const double scale = static_cast<double>(inputs) / outputs;
    const double width = std::max(scale, 1.0);  // antialiasing: the filter widens with the scale
    const double support = (is_cubic ? 2 : 1) * width;
    stride = 2 * static_cast<int64_t>(std::ceil(support)) + 1;
    weights.assign(outputs * stride, 0);
    std::vector<double> exact(stride);
    for (int64_t i = 0; i < outputs; ++i) {
      const double center = (i + 0.5) * scale;
      const int64_t begin = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
      const int64_t end = std::min(inputs, static_cast<int64_t>(center + support + 0.5));
      double sum = 0;
      for (int64_t k = 0; k < end - begin; ++k) {
        const double distance = (k + begin - center + 0.5) * (1.0 / width);
        sum += exact[k] = is_cubic ? cubic(distance) : triangle(distance);
      }
      for (int64_t k = 0; k < end - begin; ++k) {
        const double weight = (sum != 0 ? exact[k] / sum : exact[k]) * (1 << kTapBits);
        weights[i * stride + k] = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
      }
      begins.push_back(begin);
      lengths.push_back(end - begin);
    }
  }
};

uint8_t round_to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kTapBits, 0, 255));
}

constexpr int32_t kHalf = 1 << (kTapBits - 1);

void resize_row(const uint8_t* row, const Taps& taps, int64_t out_width, uint8_t* target) {
  for (int64_t x = 0; x < out_width; ++x) {
    const uint8_t* pixel = row + 3 * taps.begins[x];
    const int32_t* weights = taps.weights.data() + x * taps.stride;
    int32_t red = kHalf, green = kHalf, blue = kHalf;
    for (int64_t k = 0; k < taps.lengths[x]; ++k, pixel += 3) {
      red += pixel[0] * weights[k];
      green += pixel[1] * weights[k];
      blue += pixel[2] * weights[k];
    }
    target[3 * x] = round_to_byte(red);
    target[3 * x + 1] = round_to_byte(green);
    target[3 * x + 2] = round_to_byte(blue);
  }
}

}  // namespace

void resize_image(const uint8_t* source, int64_t in_height, int64_t in_width, int64_t out_height,
                  int64_t out_width, ResizingFilter filter, uint8_t* target) {
  const int64_t row_bytes = 3 * out_width;
  std::vector<uint8_t> narrowed;
  if (in_width != out_width) {
    const Taps taps(in_width, out_width, filter);
    narrowed.resize(in_height * row_bytes);
    parallel_for(in_height, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y)
        resize_row(source + 3 * y * in_width, taps, out_width, narrowed.data() + y * row_bytes);
    });
    source = narrowed.data();
  }
  if (in_height == out_height) {
    std::copy_n(source, out_height * row_bytes, target);
    return;
  }
  const Taps taps(in_height, out_height, filter);
  parallel_for(out_height, kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> sums(row_bytes);
    for (int64_t y = begin; y < end; ++y) {
      std::fill(sums.begin(), sums.end(), kHalf);
      for (int64_t k = 0; k < taps.lengths[y]; ++k) {
        const uint8_t* row = source + (taps.begins[y] + k) * row_bytes;
        const int32_t weight = taps.weights[y * taps.stride + k];
        for (int64_t x = 0; x < row_bytes; ++x) sums[x] += row[x] * weight;
      }
      for (int64_t x = 0; x < row_bytes; ++x) target[y * row_bytes + x] = round_to_byte(sums[x]);
    }
  });
}

}  // namespace mmad_fast
