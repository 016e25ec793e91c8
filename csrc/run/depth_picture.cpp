#include "run/depth_picture.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "run/bilinear_taps.h"
#include "run/hole_filling.h"

namespace mmad_fast {
namespace {

constexpr double kCentimetresPerMetre = 100;
constexpr int kFillingRounds = 3;

// Mean of the measured ones among 2 x 2 pixels; 0 without any.
double mean_of_corner(const float* z, int64_t width) {
  double sum = 0;
  int count = 0;
  for (const float depth : {z[0], z[1], z[width], z[width + 1]}) {
    sum += depth;
    count += depth != 0;
  }
  return count == 0 ? 0 : sum / count;
}

double share(int64_t index, int64_t length) {
  return static_cast<double>(index) / static_cast<double>(length - 1);
}

// corners: of the background, top left, top right, bottom left, bottom right; false where they are
// not known.
bool find_corners(const float* z, int64_t height, int64_t width, double* corners) {
  const int64_t bottom = (height - 2) * width;
  for (int i = 0; i < 4; ++i) {
    corners[i] = mean_of_corner(z + (i / 2) * bottom + (i % 2) * (width - 2), width);
  }
  const auto missing = std::count(corners, corners + 4, 0.0);
  if (missing > 1) return false;
  for (int i = 0; i < 4 && missing == 1; ++i) {
    // Opposite corners of a plane over a rectangle have the same sum.
    if (corners[i] == 0) {
      corners[i] = corners[i ^ 1] + corners[i ^ 2] - corners[i ^ 3];
      break;
    }
  }
  return true;
}

// is_object (height, width), of which the mean depth is returned, 0 without any.
double mark_object(const float* z, int64_t height, int64_t width, const double* corners,
                   double plane_removal, uint8_t* is_object, int64_t* num_pixels) {
  double sum = 0;
  *num_pixels = 0;
  for (int64_t y = 0; y < height; ++y) {
    const double down = share(y, height);
    double left = 0, right = 0;
    if (corners != nullptr) {
      left = corners[0] * (1 - down) + corners[2] * down;
      right = corners[1] * (1 - down) + corners[3] * down;
    }
    for (int64_t x = 0; x < width; ++x) {
      const double depth = z[y * width + x], across = share(x, width);
      const double background = left * (1 - across) + right * across;
      const bool is_near = corners != nullptr && std::fabs(background - depth) <= plane_removal;
      const bool is_taken = depth != 0 && !is_near;
      is_object[y * width + x] = is_taken;
      *num_pixels += is_taken;
      if (is_taken) sum += depth;
    }
  }
  return *num_pixels == 0 ? 0 : sum / *num_pixels;
}

}  // namespace

DepthPicture draw_depth(const float* xyz, int64_t height, int64_t width, double plane_removal,
                        int64_t size, float* picture, uint8_t* foreground, uint8_t* is_object) {
  std::vector<float> z(height * width);
  for (std::size_t i = 0; i < z.size(); ++i) z[i] = xyz[3 * i + 2];
  fill_holes(z.data(), height, width, {1, height, 1, width}, kFillingRounds);
  double corners[4];
  const bool has_plane = find_corners(z.data(), height, width, corners);
  int64_t num_pixels = 0;
  const double mean = mark_object(z.data(), height, width, has_plane ? corners : nullptr,
                                  plane_removal, is_object, &num_pixels);
  const auto value = [&](int64_t pixel) {
    return is_object[pixel] ? static_cast<float>((z[pixel] - mean) * kCentimetresPerMetre) : 0.0f;
  };
  const BilinearTaps rows(height, size), columns(width, size);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t low = rows.low[i] * width, high = rows.high[i] * width;
    const float down = rows.weight[i];
    for (int64_t j = 0; j < size; ++j) {
      const float across = columns.weight[j];
      const int64_t pixels[4] = {low + columns.low[j], low + columns.high[j], high + columns.low[j],
                                 high + columns.high[j]};
      const float weights[4] = {(1 - down) * (1 - across), (1 - down) * across, down * (1 - across),
                                down * across};
      float mixed = 0;
      bool has_object = false;
      for (int k = 0; k < 4; ++k) {
        mixed += weights[k] * value(pixels[k]);
        has_object = has_object || (is_object[pixels[k]] && weights[k] > 0);
      }
      picture[i * size + j] = mixed;
      foreground[i * size + j] = has_object;
    }
  }
  return {num_pixels, has_plane};
}

}  // namespace mmad_fast
