// All sums are made in double: a sensor's noise is far below a metre. Only the points' bounding box
// is worked on.
#include "run/organised_normals.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/parallel.h"

namespace mmad_fast {
namespace {

constexpr double kReach = 3;  // sigmas
constexpr int64_t kGrain = 16;

// A point, or the weighted sum of some, and the sum of the weights: 0 for no point.
struct Sum {
  double x, y, z, weight;
};

struct Box {
  int64_t top, bottom, left, right;  // the last ones not in it
  int64_t height() const { return bottom - top; }
  int64_t width() const { return right - left; }
};

Box bounding_box(const float* xyz, int64_t side) {
  Box box{side, 0, side, 0};
  for (int64_t y = 0; y < side; ++y) {
    for (int64_t x = 0; x < side; ++x) {
      if (xyz[3 * (y * side + x) + 2] == 0) continue;
      box = {std::min(box.top, y), std::max(box.bottom, y + 1), std::min(box.left, x),
             std::max(box.right, x + 1)};
    }
  }
  return box;
}

std::vector<Sum> points_of(const float* xyz, int64_t side, const Box& box) {
  std::vector<Sum> points;
  points.reserve(box.height() * box.width());
  for (int64_t y = box.top; y < box.bottom; ++y) {
    for (int64_t x = box.left; x < box.right; ++x) {
      const float* point = xyz + 3 * (y * side + x);
      const bool is_point = point[2] != 0;
      points.push_back(is_point ? Sum{point[0], point[1], point[2], 1} : Sum{0, 0, 0, 0});
    }
  }
  return points;
}

// The taps of one side, the centre's first.
std::vector<double> gaussian(double sigma) {
  std::vector<double> taps{1};
  const auto reach = static_cast<int64_t>(std::floor(kReach * sigma + 0.5));
  for (int64_t i = 1; i <= reach; ++i) {
    taps.push_back(std::exp(-0.5 * static_cast<double>(i * i) / (sigma * sigma)));
  }
  return taps;
}

// Weighted sums along an axis of `count` places that lie `step` apart.
void sum_along(const Sum* source, int64_t count, int64_t step, const std::vector<double>& taps,
               Sum* target) {
  const auto reach = static_cast<int64_t>(taps.size()) - 1;
  for (int64_t i = 0; i < count; ++i) {
    Sum sum{0, 0, 0, 0};
    for (int64_t j = std::max<int64_t>(0, i - reach); j < std::min(count, i + reach + 1); ++j) {
      const double tap = taps[std::abs(i - j)];
      const Sum& one = source[j * step];
      sum.x += tap * one.x, sum.y += tap * one.y, sum.z += tap * one.z;
      sum.weight += tap * one.weight;
    }
    target[i * step] = sum;
  }
}

void smooth_points(const Box& box, double sigma, std::vector<Sum>& points) {
  const std::vector<double> taps = gaussian(sigma);
  const int64_t width = box.width(), height = box.height();
  std::vector<Sum> along_rows(points.size()), sums(points.size());
  parallel_for(height, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      sum_along(&points[y * width], width, 1, taps, &along_rows[y * width]);
    }
  });
  parallel_for(width, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x) {
      sum_along(&along_rows[x], height, width, taps, &sums[x]);
    }
  });
  for (std::size_t i = 0; i < points.size(); ++i) {
    const Sum& sum = sums[i];
    if (points[i].weight == 0) continue;
    points[i] = {sum.x / sum.weight, sum.y / sum.weight, sum.z / sum.weight, 1};
  }
}

struct Vector {
  double x, y, z;
};

// From the point before to the point after; the point itself where one of them is missing.
Vector difference(const Sum& before, const Sum& point, const Sum& after) {
  const Sum& from = before.weight == 0 ? point : before;
  const Sum& to = after.weight == 0 ? point : after;
  return {to.x - from.x, to.y - from.y, to.z - from.z};
}

Vector normal_of(const Sum& point, const Vector& right, const Vector& down) {
  Vector normal{right.y * down.z - right.z * down.y, right.z * down.x - right.x * down.z,
                right.x * down.y - right.y * down.x};
  const double length = std::sqrt(normal.x * normal.x + normal.y * normal.y + normal.z * normal.z);
  if (length == 0) return {0, 0, -1};
  const double side = normal.x * point.x + normal.y * point.y + normal.z * point.z;
  const double scale = (side > 0 ? -1 : 1) / length;
  return {normal.x * scale, normal.y * scale, normal.z * scale};
}

void write(const Vector& value, float* target) {
  target[0] = static_cast<float>(value.x);
  target[1] = static_cast<float>(value.y);
  target[2] = static_cast<float>(value.z);
}

void write_surface(const std::vector<Sum>& points, const Box& box, int64_t side, float* smoothed,
                   float* normals) {
  const int64_t width = box.width(), height = box.height();
  const Sum nothing{0, 0, 0, 0};
  parallel_for(height, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const Sum* point = &points[y * width + x];
        if (point->weight == 0) continue;
        const Vector right =
            difference(x > 0 ? point[-1] : nothing, *point, x + 1 < width ? point[1] : nothing);
        const Vector down = difference(y > 0 ? point[-width] : nothing, *point,
                                       y + 1 < height ? point[width] : nothing);
        const int64_t offset = 3 * ((box.top + y) * side + box.left + x);
        write({point->x, point->y, point->z}, smoothed + offset);
        write(normal_of(*point, right, down), normals + offset);
      }
    }
  });
}

}  // namespace

void organised_normals(const float* xyz, int64_t side, double sigma, float* smoothed,
                       float* normals) {
  std::fill(smoothed, smoothed + 3 * side * side, 0.0f);
  std::fill(normals, normals + 3 * side * side, 0.0f);
  const Box box = bounding_box(xyz, side);
  if (box.height() <= 0) return;
  std::vector<Sum> points = points_of(xyz, side, box);
  if (sigma > 0) smooth_points(box, sigma, points);
  write_surface(points, box, side, smoothed, normals);
}

}  // namespace mmad_fast
