#include "run/bilinear_rows.h"

#include <algorithm>
#include <cmath>

namespace mmad_fast {
namespace {

// Per output position the two tokens along an axis and the weight of the second, which is 0 at the
// border, where both would be the same token.
struct Axis {
  std::vector<int64_t> lower, upper;
  std::vector<double> fraction;
};

Axis interpolation_axis(int64_t token_grid, int64_t output_size) {
  const double scale = static_cast<double>(token_grid) / static_cast<double>(output_size);
  Axis axis;
  for (int64_t i = 0; i < output_size; ++i) {
    const double position = std::clamp((static_cast<double>(i) + 0.5) * scale - 0.5, 0.0,
                                       static_cast<double>(token_grid - 1));
    const auto lower = static_cast<int64_t>(std::floor(position));
    axis.lower.push_back(lower);
    axis.upper.push_back(std::min(lower + 1, token_grid - 1));
    axis.fraction.push_back(position - static_cast<double>(lower));
  }
  return axis;
}

}  // namespace

SparseRows bilinear_rows(const int64_t* pixel_indices, int64_t num_pixels, int64_t token_grid,
                         int64_t output_size) {
  const Axis axis = interpolation_axis(token_grid, output_size);
  SparseRows rows;
  for (int64_t i = 0; i < num_pixels; ++i) {
    const int64_t y = pixel_indices[i] / output_size, x = pixel_indices[i] % output_size;
    const double down = axis.fraction[y], right = axis.fraction[x];
    const auto add = [&](int64_t row, int64_t column, double weight) {
      if (weight == 0) return;
      rows.columns.push_back(static_cast<int32_t>(row * token_grid + column));
      rows.values.push_back(static_cast<float>(weight));
    };
    add(axis.lower[y], axis.lower[x], (1 - down) * (1 - right));
    add(axis.lower[y], axis.upper[x], (1 - down) * right);
    add(axis.upper[y], axis.lower[x], down * (1 - right));
    add(axis.upper[y], axis.upper[x], down * right);
    rows.offsets.push_back(static_cast<int64_t>(rows.columns.size()));
  }
  return rows;
}

}  // namespace mmad_fast
