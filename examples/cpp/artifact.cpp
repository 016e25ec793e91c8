#include "artifact.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "error.h"
#include "manifest_digest.h"
#include "sha256.h"

namespace mmad_fast_infer {
namespace {

using nlohmann::json;

constexpr int64_t kSchema = 3;
constexpr int64_t kMaxSide = 1 << 15;
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// What is wrong with an artifact's content; the advice is the same for all.
class DamagedArtifact : public InferError {
 public:
  using InferError::InferError;
};

// A JSON object of the manifest that is read field by field, with messages that name the field.
class Record {
 public:
  Record(const json& content, std::string name) : content_(content), name_(std::move(name)) {
    if (!content_.is_object()) throw DamagedArtifact(text(name_, " is no object"));
  }

  const json& field(const std::string& key) const {
    const auto found = content_.find(key);
    if (found == content_.end()) throw DamagedArtifact(text(name_, " lacks '", key, "'"));
    return *found;
  }
  int64_t integer(const std::string& key, int64_t minimum, int64_t maximum) const {
    const json& value = field(key);
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() ||
                       value.get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()}) &&
                      value.get<int64_t>() >= minimum && value.get<int64_t>() <= maximum;
    if (!fits) refuse(key, text("an integer in ", minimum, "..", maximum));
    return value.get<int64_t>();
  }
  double number(const std::string& key, double minimum, double maximum) const {
    const json& value = field(key);
    const bool fits =
        value.is_number() && value.get<double>() >= minimum && value.get<double>() <= maximum;
    if (!fits) refuse(key, text("a number in ", minimum, "..", maximum));
    return value.get<double>();
  }
  bool flag(const std::string& key) const {
    if (!field(key).is_boolean()) refuse(key, "true or false");
    return field(key).get<bool>();
  }
  std::string name(const std::string& key) const {
    if (!field(key).is_string()) refuse(key, "a string");
    return field(key).get<std::string>();
  }
  std::string choice(const std::string& key, const std::vector<std::string>& known) const {
    const std::string value = name(key);
    if (std::find(known.begin(), known.end(), value) == known.end()) {
      std::string listed;
      for (const std::string& other : known) listed += (listed.empty() ? "" : ", ") + other;
      refuse(key, "one of " + listed);
    }
    return value;
  }
  std::array<double, 3> triple(const std::string& key) const {
    const json& value = field(key);
    const bool fits = value.is_array() && value.size() == 3 &&
                      std::all_of(value.begin(), value.end(), [](const json& number) {
                        return number.is_number() && std::isfinite(number.get<double>());
                      });
    if (!fits) refuse(key, "three finite numbers");
    return value.get<std::array<double, 3>>();
  }

 private:
  [[noreturn]] void refuse(const std::string& key, const std::string& need) const {
    throw DamagedArtifact(text(name_, ": ", key, " is ",
                               field(key).dump(-1, ' ', true, json::error_handler_t::replace),
                               "; it must be ", need));
  }

  const json& content_;
  std::string name_;
};

std::string read_manifest(const std::filesystem::path& folder) {
  std::error_code failure;
  if (!std::filesystem::is_directory(folder, failure)) {
    throw InferError(text(folder.string(), ": no such folder; make a detector artifact with ",
                          "`mmad-fast fit`, or check the path"));
  }
  std::ifstream stream(folder / "manifest.json", std::ios::binary);
  std::ostringstream content;
  if (!(content << stream.rdbuf())) {
    throw InferError(text(folder.string(), ": has no manifest.json that can be read; name the ",
                          "folder that `mmad-fast fit --output` wrote"));
  }
  return content.str();
}

json parse_manifest(const std::string& content, const std::filesystem::path& folder) {
  try {
    return json::parse(content);
  } catch (const json::exception& error) {
    throw InferError(text(folder.string(), "/manifest.json: is not a readable manifest (",
                          error.what(), "); copy the artifact again or refit"));
  }
}

void check_schema(int64_t schema, const std::filesystem::path& folder) {
  if (schema == kSchema) return;
  throw InferError(text(
      folder.string(), ": has schema ", schema, ", this program reads ", kSchema, "; ",
      schema > kSchema ? "build a newer version of it" : "fit the detector again: mmad-fast fit"));
}

void check_family(const std::string& family, const std::string& method,
                  const std::filesystem::path& folder) {
  if (family == "cfm") return;
  throw InferError(text(folder.string(), ": is a detector of method ", method, ", family ", family,
                        "; this program runs the family cfm only: run it with mmad_fast in ",
                        "Python, or fit another: mmad-fast fit --method cfm-s"));
}

void check_plain_name(const std::string& name) {
  const std::filesystem::path path(name);
  if (name.empty() || name == "." || name == ".." || path.filename() != path) {
    throw DamagedArtifact(text("names a file outside the artifact: '", name, "'"));
  }
}

std::map<std::string, std::filesystem::path> read_graphs(const Record& manifest,
                                                         const std::filesystem::path& folder) {
  const Record graphs(manifest.field("graphs"), "graphs");
  std::map<std::string, std::filesystem::path> result;
  for (const char* name : {"rgb", "points"}) {
    const std::string file = Record(graphs.field(name), name).name("file");
    check_plain_name(file);
    result[name] = folder / file;
  }
  return result;
}

// Compares the files that are read here; an artifact may hold large ones for other engines.
void verify_files(const Record& manifest, const Artifact& artifact) {
  const Record files(manifest.field("files"), "files");
  std::vector<std::filesystem::path> read = {artifact.tensors_file(), artifact.golden_file()};
  for (const auto& [graph, file] : artifact.graphs) read.push_back(file);
  for (const std::filesystem::path& file : read) {
    const std::string name = file.filename().string();
    const Record wanted(files.field(name), name);
    const int64_t bytes = wanted.integer("bytes", 0, std::numeric_limits<int64_t>::max());
    std::error_code failure;
    const auto size = std::filesystem::file_size(file, failure);
    if (failure) throw DamagedArtifact(text("the file ", name, " is missing"));
    if (size != static_cast<uintmax_t>(bytes)) {
      throw DamagedArtifact(text(name, " has ", size, " bytes, the manifest says ", bytes));
    }
    const std::string digest = sha256_of_file(file), expected = wanted.name("sha256");
    if (digest != expected) {
      throw DamagedArtifact(text(name, " has been changed (sha256 ", digest.substr(0, 12),
                                 "..., the manifest says ", expected.substr(0, 12), "...)"));
    }
  }
}

Recipe read_recipe(const json& content) {
  const Record record(content, "preprocess");
  const double most = std::numeric_limits<double>::max(), least = 1e-9;
  Recipe recipe;
  recipe.remove_background = record.flag("remove_background");
  recipe.black_background = record.choice("rgb_background", {"keep", "black"}) == "black";
  recipe.edge_padding = record.choice("rgb_padding", {"edge", "zero"}) == "edge";
  recipe.rim_width_px = record.integer("rim_width_px", 1, kMaxInt32);
  recipe.min_rim_points = record.integer("min_rim_points", 1, kMaxInt32);
  recipe.cluster_min_points = record.integer("cluster_min_points", 1, kMaxInt32);
  recipe.min_inlier_fraction = record.number("min_inlier_fraction", 0, 1);
  recipe.min_rim_coverage = record.number("min_rim_coverage", 0, 1);
  recipe.plane_inlier_m = record.number("plane_inlier_m", least, most);
  recipe.plane_removal_m = record.number("plane_removal_m", least, most);
  recipe.cluster_radius_m = record.number("cluster_radius_m", 1e-4, most);
  recipe.seed = record.integer("seed", 0, std::numeric_limits<int64_t>::max());
  recipe.mean = record.triple("mean");
  recipe.std = record.triple("std");
  for (const double deviation : recipe.std) {
    if (deviation <= 0) throw DamagedArtifact("preprocess: std must be three positive numbers");
  }
  return recipe;
}

Parameters read_parameters(const json& content) {
  const Record record(content, "parameters");
  Parameters parameters;
  parameters.rgb_size = record.integer("rgb_size", 1, kMaxSide);
  parameters.token_grid = record.integer("token_grid", 1, kMaxSide);
  parameters.grid_size = record.integer("grid_size", 3, kMaxSide);
  parameters.num_groups = record.integer("num_groups", 3, kMaxInt32);
  parameters.group_size = record.integer("group_size", 1, kMaxInt32);
  parameters.pixel_stride = record.integer("pixel_stride", 1, 4);
  if (parameters.pixel_stride == 3)
    throw DamagedArtifact("pixel_stride is 3; it must be 1, 2 or 4");
  parameters.skip_near_origin = record.flag("skip_near_origin");
  parameters.aggregation =
      record.choice("aggregation", {"product", "sum", "max", "psi_2d", "psi_3d"});
  parameters.mapping = record.choice("mapping", {"crossmodal", "intramodal"});
  parameters.score_norm = record.choice("score_norm", {"cfm", "raw"});
  parameters.smoothing = record.choice("smoothing", {"boxes53", "sigma4"});
  return parameters;
}

std::optional<double> read_threshold(const json& content) {
  if (content.is_null()) return std::nullopt;
  const double most = std::numeric_limits<double>::max();
  return Record(content, "threshold").number("value", -most, most);
}

}  // namespace

std::map<std::string, std::string> Parameters::networks() const {
  const bool crosses = mapping == "crossmodal";
  std::map<std::string, std::string> names;
  if (aggregation != "psi_3d") names["psi_2d"] = crosses ? "point_to_rgb" : "rgb_to_rgb";
  if (aggregation != "psi_2d") names["psi_3d"] = crosses ? "rgb_to_point" : "point_to_point";
  return names;
}

Artifact read_artifact(const std::filesystem::path& folder) {
  const std::string manifest_text = read_manifest(folder);
  const json content = parse_manifest(manifest_text, folder);
  try {
    const Record manifest(content, "the manifest");
    Artifact artifact;
    artifact.folder = folder;
    artifact.schema = manifest.integer("schema", 0, kMaxInt32);
    check_schema(artifact.schema, folder);
    if (manifest_digest(manifest_text) != manifest.name(kDigestKey)) {
      throw DamagedArtifact(
          "the manifest has been changed since it was written (its own sha256 differs)");
    }
    artifact.method = manifest.name("method");
    check_family(manifest.name("family"), artifact.method, folder);
    artifact.graphs = read_graphs(manifest, folder);
    verify_files(manifest, artifact);
    artifact.recipe = read_recipe(manifest.field("preprocess"));
    artifact.parameters = read_parameters(manifest.field("parameters"));
    artifact.threshold = read_threshold(manifest.field("threshold"));
    return artifact;
  } catch (const DamagedArtifact& error) {
    throw InferError(
        text(folder.string(), ": ", error.what(), "; copy the artifact again or fit it again"));
  }
}

}  // namespace mmad_fast_infer
