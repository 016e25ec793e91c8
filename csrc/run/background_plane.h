// The plane that a scan's object lies on, found on the image's rim.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

namespace mmad_fast {

// What the search reads of a preprocessing recipe; mmad_fast/preprocess/recipes.py says what each
// constant is.
struct PlaneRecipe {
  int64_t rim_width_px, min_rim_points;
  double min_inlier_fraction, min_rim_coverage, plane_inlier_m;
  uint64_t seed;
};

struct PlaneSearch {
  // (a, b, c, d) of ax + by + cz + d = 0 in metres, (a, b, c) of unit length and d >= 0.
  std::optional<std::array<double, 4>> plane;
  int64_t num_rim_points = 0;  // measured pixels of the rim
  int64_t num_inliers = 0;     // those that lie on the plane, 0 without one
  std::string reason;          // why there is no plane
};

// RANSAC over planes through three points of the rim of xyz (height, width, 3) float32 metres,
// finite, a pixel with a zero coordinate not being measured; the best one is refined by total least
// squares on its inliers. The random numbers are those of numpy.random.default_rng(seed). No plane
// is a normal answer.
PlaneSearch find_background_plane(const float* xyz, int64_t height, int64_t width,
                                  const PlaneRecipe& recipe);

}  // namespace mmad_fast
