// A detector artifact of CFM: the manifest of its folder, checked.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace mmad_fast_infer {

// How a scan becomes network input; mmad_fast/preprocess/recipes.py says what each constant is.
struct Recipe {
  bool remove_background;
  bool black_background;  // else removed pixels keep their RGB
  bool edge_padding;      // else RGB is padded by zero
  int64_t rim_width_px, min_rim_points, cluster_min_points;
  double min_inlier_fraction, min_rim_coverage;
  double plane_inlier_m, plane_removal_m, cluster_radius_m;
  uint64_t seed;
  std::array<double, 3> mean, std;
};

// What a CFM detector was fitted with, as far as running it needs; see
// mmad_fast/methods/cfm/parameters.py.
struct Parameters {
  int64_t rgb_size, token_grid, grid_size, num_groups, group_size, pixel_stride;
  bool skip_near_origin;
  std::string aggregation, mapping, score_norm, smoothing;

  // Name of the network behind each discrepancy map that the aggregation reads: "psi_2d", "psi_3d".
  std::map<std::string, std::string> networks() const;
};

struct Artifact {
  std::filesystem::path folder;
  std::string method;
  int64_t schema;
  Recipe recipe;
  Parameters parameters;
  std::optional<double> threshold;
  std::map<std::string, std::filesystem::path> graphs;  // ONNX file by graph name

  std::filesystem::path tensors_file() const { return folder / "tensors.safetensors"; }
  std::filesystem::path golden_file() const { return folder / "golden.safetensors"; }
};

// The artifact in a folder; the files that it names are compared with their sizes and sha256 in the
// manifest. Throws InferError where it is missing, damaged, of another schema or of another family
// than CFM.
Artifact read_artifact(const std::filesystem::path& folder);

}  // namespace mmad_fast_infer
