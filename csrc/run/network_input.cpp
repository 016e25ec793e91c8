#include "run/network_input.h"

#include <algorithm>
#include <vector>

#include "foreground/op.h"

namespace mmad_fast {
namespace {

// Per output the nearest input, floor(i * input / output) in single precision as in torch, minus
// the border in front; it may lie in the border.
std::vector<int64_t> nearest_indices(int64_t input_size, int64_t output_size, int64_t border) {
  const float scale = static_cast<float>(input_size) / static_cast<float>(output_size);
  std::vector<int64_t> indices(output_size);
  for (int64_t i = 0; i < output_size; ++i) {
    const auto nearest = static_cast<int64_t>(static_cast<float>(i) * scale);
    indices[i] = std::min(nearest, input_size - 1) - border;
  }
  return indices;
}

}  // namespace

Padding square_padding(int64_t height, int64_t width) {
  const int64_t side = std::max(height, width);
  const int64_t top = (side - height) / 2, left = (side - width) / 2;
  return {top, side - height - top, left, side - width - left};
}

void resize_padded_rgb(const uint8_t* rgb, int64_t height, int64_t width, const Padding& padding,
                       bool repeats_edge, int64_t size, uint8_t* target, ResizingFilter filter) {
  const auto [top, bottom, left, right] = padding;
  const int64_t padded_height = top + height + bottom, padded_width = left + width + right;
  std::vector<uint8_t> padded;
  if (padded_height != height || padded_width != width) {
    padded.resize(3 * padded_height * padded_width);
    for (int64_t y = 0; y < padded_height; ++y) {
      const int64_t row = std::clamp<int64_t>(y - top, 0, height - 1);
      if (row != y - top && !repeats_edge) continue;
      const uint8_t* source = rgb + 3 * row * width;
      uint8_t* line = padded.data() + 3 * y * padded_width;
      std::copy_n(source, 3 * width, line + 3 * left);
      if (!repeats_edge) continue;
      for (int64_t x = 0; x < left; ++x) std::copy_n(source, 3, line + 3 * x);
      for (int64_t x = left + width; x < padded_width; ++x) {
        std::copy_n(source + 3 * (width - 1), 3, line + 3 * x);
      }
    }
    rgb = padded.data();
  }
  resize_image(rgb, padded_height, padded_width, size, size, filter, target);
}

void normalise_rgb(const uint8_t* rgb, int64_t num_pixels, const double* mean, const double* std,
                   float* image) {
  for (int channel = 0; channel < 3; ++channel, image += num_pixels) {
    const auto scale = static_cast<float>(1.0 / (255.0 * std[channel]));
    const auto shift = static_cast<float>(mean[channel] / std[channel]);
    for (int64_t i = 0; i < num_pixels; ++i) {
      image[i] = static_cast<float>(rgb[3 * i + channel]) * scale - shift;
    }
  }
}

void resize_padded_xyz(const float* xyz, const uint8_t* states, int64_t height, int64_t width,
                       const Padding& padding, int64_t size, float* grid) {
  const auto rows = nearest_indices(padding.top + height + padding.bottom, size, padding.top);
  const auto columns = nearest_indices(padding.left + width + padding.right, size, padding.left);
  for (int64_t y = 0; y < size; ++y) {
    const bool has_row = rows[y] >= 0 && rows[y] < height;
    for (int64_t x = 0; x < size; ++x, grid += 3) {
      const bool is_inside = has_row && columns[x] >= 0 && columns[x] < width;
      const int64_t pixel = is_inside ? rows[y] * width + columns[x] : 0;
      const float* point = xyz + 3 * pixel;
      const bool is_taken =
          is_inside && (states != nullptr ? states[pixel] == kPixelForeground
                                          : point[0] != 0 && point[1] != 0 && point[2] != 0);
      for (int axis = 0; axis < 3; ++axis) grid[axis] = is_taken ? point[axis] : 0.0f;
    }
  }
}

}  // namespace mmad_fast
