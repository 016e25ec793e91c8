// The records a scan passes through, in flow order.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "run/background_plane.h"
#include "safetensors.h"

namespace mmad_fast_infer {

// One pixel-registered RGB + XYZ sample at the sensor's resolution.
struct Scan {
  int64_t height, width;
  std::vector<uint8_t> rgb;  // (H, W, 3)
  std::vector<float> xyz;    // (H, W, 3) metres, finite; (0, 0, 0): no measurement
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

// The scan in the tensors "rgb" (H, W, 3) U8 and "xyz" (H, W, 3) F32 or F64 of a file, of which one
// coordinate unit is `metres_per_unit` long. Pixels with a NaN or infinite coordinate become
// (0, 0, 0). Throws InferError for other types or shapes, fewer than 32 pixels a side, or numbers
// that cannot be in that unit.
Scan read_scan(const Tensors& tensors, const std::filesystem::path& file, double metres_per_unit);

// The scan with its background removed, square, resized and normalised. A scan without foreground
// gives 0 points.
PreparedScan prepare(const Scan& scan, const Recipe& recipe, int64_t rgb_size, int64_t grid_size);

}  // namespace mmad_fast_infer
