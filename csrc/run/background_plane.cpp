#include "run/background_plane.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/pairwise_sum.h"
#include "run/numpy_random.h"
#include "run/symmetric_eigen.h"

namespace mmad_fast {
namespace {

// Planes through three rim points that are tried. With 30 % inliers, the least that a published
// recipe accepts, one of them is free of outliers with probability 1 - 1e-6.
constexpr int64_t kNumHypotheses = 512;
// Rim points on which a hypothesis is judged, evenly spread over the rim.
constexpr int64_t kNumJudges = 256;
// Rim points that are used at most, evenly spread over the rim: sensor noise of 0.1 mm then moves
// the plane by about 1 micrometre.
constexpr int64_t kMaxRimPoints = 8192;
constexpr int kMaxRefinements = 10;
// Standard deviation that the inliers need in their second direction, in units of the inlier
// distance: below, they lie on a line and many planes hold them.
constexpr double kMinSpread = 0.25;

using Vector = std::array<double, 3>;
using Plane = std::array<double, 4>;

struct Rim {
  int64_t num_pixels = 0;
  std::vector<Vector> measured;
};

// Each pixel of the outermost rows and columns once: rows above, rows below, then the left columns
// of the rows between, then the right ones.
Rim rim_pixels(const float* xyz, int64_t height, int64_t width, int64_t rim_width) {
  const int64_t upper = std::min(rim_width, height), left = std::min(rim_width, width);
  const int64_t lower = std::min(std::max(rim_width, height - rim_width), height);
  const int64_t right = std::min(std::max(rim_width, width - rim_width), width);
  Rim rim;
  const auto take = [&](int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int64_t column = begin; column < end; ++column) {
        const float* p = xyz + 3 * (row * width + column);
        if (p[0] != 0 && p[1] != 0 && p[2] != 0) rim.measured.push_back({p[0], p[1], p[2]});
        ++rim.num_pixels;
      }
    }
  };
  take(0, upper, 0, width);
  take(lower, height, 0, width);
  take(upper, lower, 0, left);
  take(upper, lower, right, width);
  return rim;
}

std::vector<Vector> evenly_spread(const std::vector<Vector>& items, int64_t count) {
  const auto size = static_cast<int64_t>(items.size());
  if (size <= count) return items;
  const double step = static_cast<double>(size - 1) / static_cast<double>(count - 1);
  std::vector<Vector> chosen(count);
  for (int64_t i = 0; i < count; ++i) chosen[i] = items[static_cast<int64_t>(i * step)];
  chosen.back() = items.back();
  return chosen;
}

double distance(const Vector& point, const Plane& plane) {
  return std::abs(plane[0] * point[0] + plane[1] * point[1] + plane[2] * point[2] + plane[3]);
}

// The sum of truncated squared distances of the judges from a plane.
float cost(const std::vector<Vector>& judges, const Plane& plane, double inlier_m) {
  const auto a = static_cast<float>(plane[0]), b = static_cast<float>(plane[1]);
  const auto c = static_cast<float>(plane[2]), d = static_cast<float>(plane[3]);
  const auto limit = static_cast<float>(inlier_m * inlier_m);
  std::array<float, kNumJudges> terms;
  for (std::size_t i = 0; i < judges.size(); ++i) {
    const auto x = static_cast<float>(judges[i][0]), y = static_cast<float>(judges[i][1]);
    const float signed_distance = ((a * x + b * y) + c * static_cast<float>(judges[i][2])) + d;
    terms[i] = std::min(signed_distance * signed_distance, limit);
  }
  return pairwise_sum<float>(terms.data(), static_cast<int64_t>(judges.size()));
}

// The plane through three points, or nothing where they span none.
std::optional<Plane> plane_through(const Vector& p, const Vector& q, const Vector& r,
                                   double inlier_m) {
  const Vector u = {q[0] - p[0], q[1] - p[1], q[2] - p[2]};
  const Vector v = {r[0] - p[0], r[1] - p[1], r[2] - p[2]};
  const Vector normal = {u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2],
                         u[0] * v[1] - u[1] * v[0]};
  const double length =
      std::sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2]);
  const double spread = kMinSpread * inlier_m;
  // The area of a triangle whose sides are as short as the noise says nothing of the plane.
  if (!(length > spread * spread)) return std::nullopt;
  const Vector unit = {normal[0] / length, normal[1] / length, normal[2] / length};
  return Plane{unit[0], unit[1], unit[2], -(unit[0] * p[0] + unit[1] * p[1] + unit[2] * p[2])};
}

// Of the planes through three of the centred points the one with the least cost.
std::optional<Plane> best_hypothesis(const std::vector<Vector>& points, const PlaneRecipe& recipe) {
  NumpyRandom random(recipe.seed);
  const auto corners = random.integers(static_cast<int64_t>(points.size()), 3 * kNumHypotheses);
  const std::vector<Vector> judges = evenly_spread(points, kNumJudges);
  std::optional<Plane> best;
  float least = INFINITY;
  for (int64_t i = 0; i < kNumHypotheses; ++i) {
    const auto plane =
        plane_through(points[corners[i]], points[corners[i + kNumHypotheses]],
                      points[corners[i + 2 * kNumHypotheses]], recipe.plane_inlier_m);
    if (!plane) continue;
    const float found = cost(judges, *plane, recipe.plane_inlier_m);
    if (found < least) least = found, best = plane;
  }
  return best;
}

// Total least squares plane of the points, or nothing where they lie on a line.
std::optional<Plane> least_squares_plane(const std::vector<Vector>& points, double inlier_m) {
  if (points.empty()) return std::nullopt;
  const auto count = static_cast<double>(points.size());
  Vector mean = {};
  for (const Vector& point : points) {
    for (int axis = 0; axis < 3; ++axis) mean[axis] += point[axis];
  }
  for (double& value : mean) value /= count;
  std::array<Vector, 3> scatter = {};
  for (const Vector& point : points) {
    for (int row = 0; row < 3; ++row) {
      for (int column = 0; column < 3; ++column) {
        scatter[row][column] += (point[row] - mean[row]) * (point[column] - mean[column]);
      }
    }
  }
  for (Vector& row : scatter) {
    for (double& value : row) value /= count;
  }
  const SymmetricEigen eigen = symmetric_eigen(scatter);
  const double spread = kMinSpread * inlier_m;
  if (eigen.values[1] < spread * spread) return std::nullopt;
  const Vector& normal = eigen.vectors[0];
  return Plane{normal[0], normal[1], normal[2],
               -(normal[0] * mean[0] + normal[1] * mean[1] + normal[2] * mean[2])};
}

// The least squares plane of the inliers, repeated until they stay the same.
std::optional<Plane> refine(const std::vector<Vector>& points, Plane plane, double inlier_m) {
  std::vector<bool> inliers;
  for (int round = 0; round < kMaxRefinements; ++round) {
    std::vector<bool> is_inlier(points.size());
    std::vector<Vector> chosen;
    for (std::size_t i = 0; i < points.size(); ++i) {
      is_inlier[i] = distance(points[i], plane) < inlier_m;
      if (is_inlier[i]) chosen.push_back(points[i]);
    }
    if (is_inlier == inliers) break;
    inliers = std::move(is_inlier);
    const auto refined = least_squares_plane(chosen, inlier_m);
    if (!refined) return std::nullopt;
    plane = *refined;
  }
  return plane;
}

// Moves the points so that their mean, which is returned, is the origin.
Vector centre(std::vector<Vector>& points) {
  Vector mean = {};
  for (const Vector& point : points) {
    for (int axis = 0; axis < 3; ++axis) mean[axis] += point[axis];
  }
  for (double& value : mean) value /= static_cast<double>(points.size());
  for (Vector& point : points) {
    for (int axis = 0; axis < 3; ++axis) point[axis] -= mean[axis];
  }
  return mean;
}

PlaneSearch no_plane(int64_t num_rim_points, std::string reason) {
  return {std::nullopt, num_rim_points, 0, std::move(reason)};
}

}  // namespace

PlaneSearch find_background_plane(const float* xyz, int64_t height, int64_t width,
                                  const PlaneRecipe& recipe) {
  const Rim rim = rim_pixels(xyz, height, width, recipe.rim_width_px);
  const auto num_measured = static_cast<int64_t>(rim.measured.size());
  if (num_measured < recipe.min_rim_points) {
    return no_plane(num_measured, std::to_string(num_measured) + " measured rim pixels, " +
                                      std::to_string(recipe.min_rim_points) + " are needed");
  }
  const std::vector<Vector> points = evenly_spread(rim.measured, kMaxRimPoints);
  std::vector<Vector> centred = points;
  const Vector center = centre(centred);
  auto plane = best_hypothesis(centred, recipe);
  if (plane) plane = refine(centred, *plane, recipe.plane_inlier_m);
  if (!plane) return no_plane(num_measured, "the rim points lie on a line or in one spot");
  Plane found = *plane;
  found[3] -= found[0] * center[0] + found[1] * center[1] + found[2] * center[2];
  const auto is_near = [&](const Vector& p) { return distance(p, found) < recipe.plane_inlier_m; };
  const auto num_near = std::count_if(points.begin(), points.end(), is_near);
  const double share = static_cast<double>(num_near) / static_cast<double>(points.size());
  const auto num_inliers =
      static_cast<int64_t>(std::nearbyint(share * static_cast<double>(num_measured)));
  const double needed = std::max({static_cast<double>(recipe.min_rim_points),
                                  recipe.min_inlier_fraction * static_cast<double>(num_measured),
                                  recipe.min_rim_coverage * static_cast<double>(rim.num_pixels)});
  if (static_cast<double>(num_inliers) < needed) {
    return no_plane(num_measured, "the best plane holds " + std::to_string(num_inliers) + " of " +
                                      std::to_string(num_measured) + " measured and " +
                                      std::to_string(rim.num_pixels) + " rim pixels, " +
                                      std::to_string(static_cast<int64_t>(std::ceil(needed))) +
                                      " are needed");
  }
  if (found[3] < 0) {
    for (double& value : found) value = -value;
  }
  return {found, num_measured, num_inliers, ""};
}

}  // namespace mmad_fast
