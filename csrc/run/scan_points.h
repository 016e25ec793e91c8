// From a sensor's numbers to points in metres: what stands for "no measurement" becomes (0, 0, 0).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace mmad_fast {

// What a measured coordinate of exactly zero becomes: all that follows the published rule takes a
// pixel for measured where none of its three coordinates is zero. A nanometre is a thousandth of
// the finest sensor's noise, and far from where float32 loses digits.
constexpr float kLoneZeroMetres = 1e-9f;

// Largest coordinate taken for metres; a point beyond is no measurement. Industrial 3D cameras see
// up to a few metres; the same scan in millimetres has coordinates in the hundreds.
constexpr double kMaxPlausibleMetres = 20;
// Smallest coordinate that half of a scan's points reach: no camera stands nearer to the part, and
// metres read as millimetres are below it.
constexpr double kMinPlausibleMetres = 0.005;

// A value that stands at pixels without measurement.
struct MissingMark {
  std::array<float, 3> value;  // metres; NaN: whatever stands there
  int64_t num_pixels;
};

struct ScanPoints {
  // First `missing` on each axis, if given, counted on the first axis that has it; then the marks
  // that were found, the most frequent first, at most 8.
  std::vector<MissingMark> marks;
  // Of the measured pixels' largest coordinates; NaN without any. What lies beyond
  // kMaxPlausibleMetres counts here, so that a wrong unit shows.
  float median_m = 0;
};

// metres (num_pixels, 3): `raw` (num_pixels, 3), of which `units_per_metre` are a metre, correctly
// rounded. (0, 0, 0) where a coordinate is not finite, equals `missing` (in raw's unit, as float32)
// or lies beyond kMaxPlausibleMetres; and where a mark was found:
//   - a point that stands at many pixels, bit by bit the same: two pixels see two points. Many is
//     16, of more than 131,072 pixels 40, and 16 times what is usual in the scan (scans are
//     enlarged, or quantised coarsely), where a point at a quarter of the measured pixels is not
//     usual;
//   - a coordinate that stands at as many pixels (16 or 40), outermost on its axis and farther from
//     all others of the axis than these from each other and than half of what they reach; it is
//     also farther than the scene is large, or a number known as a mark (-1, -9999, 65535, ...): x
//     and y are sometimes computed for pixels without a z;
//   - a coordinate of exactly 0 that is as far from the others of its axis, or, of x or y, stands
//     at a fifth of the pixels: converted Eyecandies have (0, y, z).
// Other coordinates of exactly 0 are measured (a principal point on a whole pixel, the zero plane
// of a height scanner) and become kLoneZeroMetres.
// `raw` is read once and may be written by others meanwhile.
template <typename T>
ScanPoints read_points(const T* raw, int64_t num_pixels, double units_per_metre,
                       const std::optional<double>& missing, float* metres);

// The number of pixels of `metres` (num_pixels, 3), from read_points, at which one of `marks`
// stands: three numbers in the unit of the scan's file, NaN for whatever stands there. They become
// (0, 0, 0) in `cleared`, which may be `metres`, or nullptr: then they are counted only.
int64_t clear_marks(const float* metres, int64_t num_pixels,
                    const std::vector<std::array<double, 3>>& marks, double units_per_metre,
                    float* cleared);

}  // namespace mmad_fast
