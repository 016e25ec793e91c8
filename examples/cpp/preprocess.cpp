#include "preprocess.h"

#include <algorithm>

#include "background_plane.h"
#include "bicubic_resizing/op.h"
#include "foreground/op.h"

namespace mmad_fast_infer {
namespace {

// State of each pixel (H, W): see foreground/op.h.
std::vector<uint8_t> segment_foreground(const Scan& scan, const Recipe& recipe) {
  const auto plane = find_background_plane(scan, recipe);
  const int64_t num_pixels = scan.height * scan.width;
  std::vector<uint8_t> states(num_pixels);
  mmad_fast::mark_pixels(scan.xyz.data(), num_pixels, plane ? plane->data() : nullptr,
                         recipe.plane_removal_m, states.data());
  mmad_fast::keep_largest_cluster(scan.xyz.data(), num_pixels, recipe.cluster_radius_m,
                                  recipe.cluster_min_points, states.data());
  return states;
}

// Without a background plane's search: what has three non-zero coordinates.
std::vector<uint8_t> measured_pixels(const Scan& scan) {
  std::vector<uint8_t> states(scan.height * scan.width);
  mmad_fast::mark_pixels(scan.xyz.data(), static_cast<int64_t>(states.size()), nullptr, 0.0,
                         states.data());
  return states;
}

// Pixels above and left of the scan in the square of side max(H, W).
struct Padding {
  int64_t side, top, left;
};

Padding square_padding(const Scan& scan) {
  const int64_t side = std::max(scan.height, scan.width);
  return {side, (side - scan.height) / 2, (side - scan.width) / 2};
}

// (side, side, 3): RGB with its border; removed pixels black where the recipe wants that.
std::vector<uint8_t> padded_rgb(const Scan& scan, const std::vector<uint8_t>& states,
                                const Recipe& recipe, const Padding& padding) {
  std::vector<uint8_t> square(3 * padding.side * padding.side);
  for (int64_t y = 0; y < padding.side; ++y) {
    for (int64_t x = 0; x < padding.side; ++x) {
      const int64_t row = std::clamp<int64_t>(y - padding.top, 0, scan.height - 1);
      const int64_t column = std::clamp<int64_t>(x - padding.left, 0, scan.width - 1);
      const bool is_border = row != y - padding.top || column != x - padding.left;
      const int64_t pixel = row * scan.width + column;
      const bool is_black = (is_border && !recipe.edge_padding) ||
                            (recipe.remove_background && recipe.black_background &&
                             states[pixel] == mmad_fast::kPixelRemoved);
      if (!is_black) std::copy_n(&scan.rgb[3 * pixel], 3, &square[3 * (y * padding.side + x)]);
    }
  }
  return square;
}

// (3, R, R): (rgb / 255 - mean) / std of the resized square.
std::vector<float> network_image(const std::vector<uint8_t>& square, int64_t side, int64_t size,
                                 const Recipe& recipe) {
  std::vector<uint8_t> resized(3 * size * size);
  mmad_fast::resize_bicubic(square.data(), side, side, size, size, resized.data());
  std::vector<float> image(resized.size());
  for (int channel = 0; channel < 3; ++channel) {
    const auto scale = static_cast<float>(1.0 / (255.0 * recipe.std[channel]));
    const auto shift = static_cast<float>(recipe.mean[channel] / recipe.std[channel]);
    float* plane = &image[channel * size * size];
    for (int64_t i = 0; i < size * size; ++i) {
      plane[i] = static_cast<float>(resized[3 * i + channel]) * scale - shift;
    }
  }
  return image;
}

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

// The foreground of the padded scan at its nearest pixels on the S x S grid.
void take_points(const Scan& scan, const std::vector<uint8_t>& states, const Padding& padding,
                 int64_t grid_size, PreparedScan& prepared) {
  const auto rows = nearest_indices(padding.side, grid_size, padding.top);
  const auto columns = nearest_indices(padding.side, grid_size, padding.left);
  for (int64_t y = 0; y < grid_size; ++y) {
    if (rows[y] < 0 || rows[y] >= scan.height) continue;
    for (int64_t x = 0; x < grid_size; ++x) {
      if (columns[x] < 0 || columns[x] >= scan.width) continue;
      const int64_t pixel = rows[y] * scan.width + columns[x];
      if (states[pixel] != mmad_fast::kPixelForeground) continue;
      const float* point = &scan.xyz[3 * pixel];
      prepared.points.insert(prepared.points.end(), point, point + 3);
      prepared.pixel_indices.push_back(y * grid_size + x);
    }
  }
}

}  // namespace

PreparedScan prepare(const Scan& scan, const Recipe& recipe, int64_t rgb_size, int64_t grid_size) {
  const std::vector<uint8_t> states =
      recipe.remove_background ? segment_foreground(scan, recipe) : measured_pixels(scan);
  const Padding padding = square_padding(scan);
  PreparedScan prepared;
  prepared.image =
      network_image(padded_rgb(scan, states, recipe, padding), padding.side, rgb_size, recipe);
  take_points(scan, states, padding, grid_size, prepared);
  return prepared;
}

}  // namespace mmad_fast_infer
