#include "run/hole_filling.h"

#include <algorithm>
#include <vector>

namespace mmad_fast {
namespace {

float mean_of_neighbours(const float* z, int64_t height, int64_t width, int64_t y, int64_t x) {
  double sum = 0;
  int count = 0;
  for (int64_t row = std::max<int64_t>(y - 1, 0); row <= std::min(y + 1, height - 1); ++row) {
    for (int64_t column = std::max<int64_t>(x - 1, 0); column <= std::min(x + 1, width - 1);
         ++column) {
      const float depth = z[row * width + column];
      sum += depth;
      count += depth != 0;
    }
  }
  return count == 0 ? 0.0f : static_cast<float>(sum / count);
}

}  // namespace

void fill_holes(float* z, int64_t height, int64_t width, const PixelBox& box, int num_rounds) {
  std::vector<int64_t> holes;
  for (int64_t y = box.top; y < box.bottom; ++y) {
    for (int64_t x = box.left; x < box.right; ++x) {
      if (z[y * width + x] == 0) holes.push_back(y * width + x);
    }
  }
  std::vector<float> filled(holes.size());
  for (int round = 0; round < num_rounds && !holes.empty(); ++round) {
    for (std::size_t i = 0; i < holes.size(); ++i) {
      filled[i] = mean_of_neighbours(z, height, width, holes[i] / width, holes[i] % width);
    }
    std::size_t left = 0;
    for (std::size_t i = 0; i < holes.size(); ++i) {
      z[holes[i]] = filled[i];
      if (filled[i] == 0) holes[left++] = holes[i];
    }
    holes.resize(left);
  }
}

}  // namespace mmad_fast
