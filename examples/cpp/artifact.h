// A detector artifact of CFM: the manifest of its folder, checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "scan.h"

namespace mmad_fast_infer {

// What a CFM detector was fitted with, as far as running it needs; see
// mmad_fast/methods/cfm/parameters.py.
struct Parameters {
  int64_t rgb_size, token_grid, grid_size, num_groups, group_size, pixel_stride;
  bool skip_near_origin;
  std::string aggregation, mapping, score_norm, smoothing;

  // Name of the network behind each discrepancy map that the aggregation reads: "psi_2d", "psi_3d".
  std::map<std::string, std::string> networks() const;
};

// A file that stays open: another artifact may take the place of this one at any moment, and what
// is read must be what was hashed.
class HeldFile {
 public:
  explicit HeldFile(std::filesystem::path file);  // throws InferError where it cannot be opened
  ~HeldFile();
  HeldFile(const HeldFile&) = delete;
  HeldFile& operator=(const HeldFile&) = delete;

  // Where the open file can be read, whatever is at its path by now.
  std::filesystem::path source() const;
  // The file is the one at its path.
  bool is_current() const;

 private:
  std::filesystem::path file_;
  int descriptor_;
};

struct Artifact {
  std::filesystem::path folder;
  std::string method;
  int64_t schema;
  Recipe recipe;
  Parameters parameters;
  std::optional<double> threshold;
  std::vector<std::array<double, 3>> missing_values;    // in the unit of scans; NaN: any
  double largest_missing_share = 0;                     // of what stood in a scan of the fit
  std::map<std::string, std::filesystem::path> graphs;  // ONNX file by graph name

  std::filesystem::path tensors_file() const { return folder / "tensors.safetensors"; }
  std::filesystem::path golden_file() const { return folder / "golden.safetensors"; }

  // Where a verified file of the artifact is read; another file where it is.
  std::filesystem::path source_of(const std::filesystem::path& file) const;

  std::map<std::filesystem::path, std::shared_ptr<const HeldFile>> held;
};

// The artifact in a folder; the files that are read here are compared with their sha256 in the
// manifest, and the manifest with its own. They are all of one artifact, also where another takes
// its place meanwhile. Throws InferError where it is missing, damaged,
// of another schema or of another family than CFM.
Artifact read_artifact(const std::filesystem::path& folder);

}  // namespace mmad_fast_infer
