// The records a scan passes through, in flow order.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "run/background_plane.h"
#include "run/scan_points.h"
#include "safetensors.h"

namespace mmad_fast_infer {

// One pixel-registered RGB + XYZ sample at the sensor's resolution.
struct Scan {
  int64_t height, width;
  std::vector<uint8_t> rgb;  // (H, W, 3)
  std::vector<float> xyz;    // (H, W, 3) metres, finite; (0, 0, 0): no measurement
  std::vector<mmad_fast::MissingMark> missing = {};  // what stood for no measurement
};

// How a scan file's coordinates are to be read.
struct Coordinates {
  double units_per_metre;
  std::optional<double> missing;                   // stands for no measurement, in that unit
  std::vector<std::array<double, 3>> known_marks;  // likewise; NaN: whatever stands there
};

// How a scan becomes network input; mmad_fast/preprocess/recipes.py says what each constant is.
struct Recipe {
  bool remove_background, blackens_background, pads_by_edge;
  mmad_fast::PlaneRecipe plane;
  double plane_removal_m, cluster_radius_m;
  int64_t cluster_min_points;
  std::array<double, 3> mean, std;
};

// What the networks read.
struct PreparedScan {
  std::vector<float> image;            // (3, R, R) normalised
  std::vector<float> points;           // (N, 3) metres, row-major on the grid
  std::vector<int64_t> pixel_indices;  // (N), ascending, on the S x S grid
};

// The scan in the tensors "rgb" (H, W, 3) U8 and "xyz" (H, W, 3) F32 or F64 of a file; see
// read_points for what is missing. Throws InferError for other types or shapes, fewer than 32
// pixels a side, or numbers that cannot be in that unit.
Scan read_scan(const Tensors& tensors, const std::filesystem::path& file, const Coordinates& kind);

// An artifact's golden scan: already in metres, and read as it is.
Scan read_golden_scan(const Tensors& tensors, const std::filesystem::path& file);

// The scan with its background removed, square, resized and normalised. A scan without foreground
// gives 0 points.
PreparedScan prepare(const Scan& scan, const Recipe& recipe, int64_t rgb_size, int64_t grid_size);

}  // namespace mmad_fast_infer
