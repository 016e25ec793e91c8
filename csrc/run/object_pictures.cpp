#include "run/object_pictures.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "common/parallel.h"
#include "run/bilinear_taps.h"
#include "run/hole_filling.h"

namespace mmad_fast {
namespace {

constexpr int64_t kCorner = 3;        // pixels a side
constexpr int64_t kClosingReach = 3;  // pixels
constexpr int kFillingRounds = 2;
constexpr double kLeastAngle = 1e-6;  // sine of that between the sides of a plane's corner
constexpr int64_t kGrain = 16;        // rows

struct Vector {
  double x, y, z;
};

Vector operator-(const Vector& a, const Vector& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }

double length(const Vector& a) { return std::sqrt(a.x * a.x + a.y * a.y + a.z * a.z); }

Vector cross(const Vector& a, const Vector& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

std::optional<Vector> mean_of(const float* xyz, int64_t width, const PixelBox& box) {
  Vector sum{0, 0, 0};
  int64_t count = 0;
  for (int64_t y = box.top; y < box.bottom; ++y) {
    for (int64_t x = box.left; x < box.right; ++x) {
      const float* point = xyz + 3 * (y * width + x);
      if (point[2] == 0) continue;
      sum = {sum.x + point[0], sum.y + point[1], sum.z + point[2]};
      ++count;
    }
  }
  if (count == 0) return std::nullopt;
  const auto n = static_cast<double>(count);
  return Vector{sum.x / n, sum.y / n, sum.z / n};
}

struct Plane {
  Vector normal;  // of unit length
  Vector point;
};

std::optional<Plane> plane_of_corners(const float* xyz, int64_t width, const PixelBox& inner) {
  const int64_t below = std::min(inner.top + kCorner, inner.bottom);
  const int64_t above = std::max(inner.bottom - kCorner, inner.top);
  const int64_t after = std::min(inner.left + kCorner, inner.right);
  const int64_t before = std::max(inner.right - kCorner, inner.left);
  const PixelBox boxes[4] = {{inner.top, below, inner.left, after},
                             {inner.top, below, before, inner.right},
                             {above, inner.bottom, inner.left, after},
                             {above, inner.bottom, before, inner.right}};
  std::vector<Vector> corners;
  for (const PixelBox& box : boxes) {
    if (const auto corner = mean_of(xyz, width, box)) corners.push_back(*corner);
  }
  if (corners.size() < 3) return std::nullopt;
  const Vector right = corners[1] - corners[0], down = corners[2] - corners[0];
  const Vector normal = cross(right, down);
  const double area = length(normal);
  if (!(area > kLeastAngle * length(right) * length(down))) return std::nullopt;
  return Plane{{normal.x / area, normal.y / area, normal.z / area}, corners[0]};
}

// The pixels that are not 0, and `reach` around them.
PixelBox box_around(const uint8_t* mask, int64_t height, int64_t width, int64_t reach) {
  PixelBox box{height, 0, width, 0};
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* row = mask + y * width;
    const uint8_t* first = std::find_if(row, row + width, [](uint8_t v) { return v != 0; });
    if (first == row + width) continue;
    const uint8_t* last = row + width - 1;
    while (*last == 0) --last;
    box = {std::min(box.top, y), y + 1, std::min<int64_t>(box.left, first - row),
           std::max<int64_t>(box.right, last + 1 - row)};
  }
  if (box.bottom == 0) return {0, 0, 0, 0};
  return {std::max<int64_t>(0, box.top - reach), std::min(height, box.bottom + reach),
          std::max<int64_t>(0, box.left - reach), std::min(width, box.right + reach)};
}

template <bool kDilates>
uint8_t merged(uint8_t a, uint8_t b) {
  return kDilates ? a | b : a & b;
}

// Each pixel becomes the largest, or smallest, within kClosingReach along rows and columns.
template <bool kDilates>
void sweep(uint8_t* mask, int64_t height, int64_t width) {
  std::vector<uint8_t> padded(width + 2 * kClosingReach, kDilates ? 0 : 1);
  for (int64_t y = 0; y < height; ++y) {
    uint8_t* row = mask + y * width;
    std::copy_n(row, width, padded.data() + kClosingReach);
    for (int64_t i = 0; i <= 2 * kClosingReach; ++i) {
      const uint8_t* moved = padded.data() + i;
      for (int64_t x = 0; x < width; ++x) row[x] = merged<kDilates>(row[x], moved[x]);
    }
  }
  const std::vector<uint8_t> source(mask, mask + height * width);
  for (int64_t y = 0; y < height; ++y) {
    uint8_t* row = mask + y * width;
    const int64_t end = std::min(height, y + kClosingReach + 1);
    for (int64_t from = std::max<int64_t>(0, y - kClosingReach); from < end; ++from) {
      const uint8_t* other = source.data() + from * width;
      for (int64_t x = 0; x < width; ++x) row[x] = merged<kDilates>(row[x], other[x]);
    }
  }
}

// Mirrored at the border, whose pixel is not repeated.
int64_t mirrored(int64_t index, int64_t count) {
  if (count == 1) return 0;
  while (index < 0 || index >= count) {
    index = index < 0 ? -index : 2 * (count - 1) - index;
  }
  return index;
}

struct SobelTaps {
  std::vector<float> smoothing, derivative;

  explicit SobelTaps(int size) : smoothing{1}, derivative{-1, 1} {
    while (static_cast<int>(smoothing.size()) < size) smoothing = summed(smoothing);
    while (static_cast<int>(derivative.size()) < size) derivative = summed(derivative);
  }

  // Convolved with (1, 1).
  static std::vector<float> summed(const std::vector<float>& taps) {
    std::vector<float> sums(taps.size() + 1, 0.0f);
    for (std::size_t i = 0; i < taps.size(); ++i) sums[i] += taps[i], sums[i + 1] += taps[i];
    return sums;
  }
};

// Weighted sums of rows around y of columns left..left + count - 1, which may lie beyond the
// border.
void sum_rows(const float* depth, int64_t height, int64_t width, int64_t y, int64_t left,
              int64_t count, const std::vector<float>& taps, float* sums) {
  const auto reach = static_cast<int64_t>(taps.size()) / 2;
  const int64_t inside = std::max<int64_t>(0, left), end = std::min(width, left + count);
  std::fill_n(sums, count, 0.0f);
  for (int64_t i = 0; i < static_cast<int64_t>(taps.size()); ++i) {
    const float* row = depth + mirrored(y + i - reach, height) * width;
    const float tap = taps[i];
    for (int64_t x = inside; x < end; ++x) sums[x - left] += tap * row[x];
    for (int64_t x = left; x < inside; ++x) sums[x - left] += tap * row[mirrored(x, width)];
    for (int64_t x = end; x < left + count; ++x) sums[x - left] += tap * row[mirrored(x, width)];
  }
}

void filter_row(const float* sums, int64_t count, const std::vector<float>& taps, float* target) {
  std::fill_n(target, count, 0.0f);
  for (std::size_t i = 0; i < taps.size(); ++i) {
    const float tap = taps[i];
    const float* moved = sums + i;
    for (int64_t x = 0; x < count; ++x) target[x] += tap * moved[x];
  }
}

void write_normals(const float* right, const float* down, const uint8_t* is_object, int64_t count,
                   float* picture) {
  for (int64_t x = 0; x < count; ++x) {
    const float norm = std::sqrt(right[x] * right[x] + down[x] * down[x] + 1.0f) + 1e-8f;
    const float half = is_object[x] ? 0.5f : 0.0f, scale = half / norm;
    picture[3 * x] = half - right[x] * scale;
    picture[3 * x + 1] = half - down[x] * scale;
    picture[3 * x + 2] = half + scale;
  }
}

}  // namespace

bool mark_object(const float* xyz, int64_t height, int64_t width, const Padding& padding,
                 double plane_removal, uint8_t* is_object) {
  const PixelBox inner{padding.top, height - padding.bottom, padding.left, width - padding.right};
  const std::optional<Plane> plane = plane_of_corners(xyz, width, inner);
  parallel_for(height, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * width; i < end * width; ++i) {
      const float* point = xyz + 3 * i;
      bool is_off = true;
      if (plane) {
        const Vector from = Vector{point[0], point[1], point[2]} - plane->point;
        const Vector& normal = plane->normal;
        const double distance = normal.x * from.x + normal.y * from.y + normal.z * from.z;
        is_off = std::fabs(distance) > plane_removal;
      }
      is_object[i] = is_off && point[2] != 0;
    }
  });
  close_mask(is_object, height, width);
  return plane.has_value();
}

void close_mask(uint8_t* mask, int64_t height, int64_t width) {
  sweep<true>(mask, height, width);
  sweep<false>(mask, height, width);
}

void scale_depth(const float* xyz, const uint8_t* is_object, int64_t height, int64_t width,
                 float low, float span, float* depth) {
  double near = INFINITY, far = -INFINITY;
  for (int64_t i = 0; i < height * width; ++i) {
    const float z = xyz[3 * i + 2];
    if (!is_object[i] || z == 0) continue;
    near = std::min<double>(near, z);
    far = std::max<double>(far, z);
  }
  const double scale = far > near ? span / (far - near) : 0;
  for (int64_t i = 0; i < height * width; ++i) {
    const float z = xyz[3 * i + 2];
    const bool is_taken = is_object[i] && z != 0;
    depth[i] = is_taken ? static_cast<float>(low + (z - near) * scale) : 0.0f;
  }
  const PixelBox box = box_around(is_object, height, width, kFillingRounds);
  fill_holes(depth, height, width, box, kFillingRounds);
}

void sobel_normals(const float* depth, const uint8_t* is_object, int64_t height, int64_t width,
                   int sobel_size, float* picture) {
  const SobelTaps taps(sobel_size);
  const int64_t reach = sobel_size / 2;
  const PixelBox box = box_around(is_object, height, width, 0);
  std::fill_n(picture, 3 * height * width, 0.0f);
  const int64_t count = box.right - box.left, wide = count + 2 * reach;
  parallel_for(box.bottom - box.top, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> smooth(wide), steep(wide), right(count), down(count);
    for (int64_t y = box.top + begin; y < box.top + end; ++y) {
      const int64_t left = box.left - reach;
      sum_rows(depth, height, width, y, left, wide, taps.smoothing, smooth.data());
      sum_rows(depth, height, width, y, left, wide, taps.derivative, steep.data());
      filter_row(smooth.data(), count, taps.derivative, right.data());
      filter_row(steep.data(), count, taps.smoothing, down.data());
      const int64_t at = y * width + box.left;
      write_normals(right.data(), down.data(), is_object + at, count, picture + 3 * at);
    }
  });
}

void stretch_picture(const float* image, int64_t height, int64_t width, const float* scale,
                     const float* shift, int64_t size, float* picture) {
  const BilinearTaps rows(height, size), columns(width, size);
  parallel_for(size, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> row(3 * width);
    for (int64_t y = begin; y < end; ++y) {
      const float* upper = image + 3 * width * rows.low[y];
      const float* lower = image + 3 * width * rows.high[y];
      for (int64_t i = 0; i < 3 * width; ++i) {
        row[i] = upper[i] + rows.weight[y] * (lower[i] - upper[i]);
      }
      for (int64_t channel = 0; channel < 3; ++channel) {
        float* target = picture + (channel * size + y) * size;
        for (int64_t x = 0; x < size; ++x) {
          const float left = row[3 * columns.low[x] + channel];
          const float right = row[3 * columns.high[x] + channel];
          target[x] = scale[channel] * (left + columns.weight[x] * (right - left)) + shift[channel];
        }
      }
    }
  });
}

}  // namespace mmad_fast
