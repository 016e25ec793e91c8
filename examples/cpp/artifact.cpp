#include "artifact.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cfloat>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>
#include <utility>
#include <vector>

#include "error.h"

namespace mmad_fast_infer {
namespace {

using nlohmann::json;
using std::filesystem::path;

constexpr int64_t kSchema = 5, kOldestSchema = 4;
constexpr const char* kUpgrade = "; build a newer version of it";
constexpr const char* kRefit =
    "; fit the detector again (mmad-fast fit), or run it with mmad_fast in Python";
constexpr int64_t kMaxSide = 1 << 15;
// An artifact is read again that is replaced at the wrong moment; where a file system cannot
// exchange two folders, there is none at the path for an instant.
constexpr int kAttempts = 50;
constexpr std::chrono::milliseconds kPause{10};

// What is wrong with an artifact's content; the advice is the same for all.
class DamagedArtifact : public InferError {
 public:
  using InferError::InferError;
};

// 64 lower-case hexadecimal digits of what is left of the stream.
std::string sha256(std::istream& stream) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> state(EVP_MD_CTX_new(),
                                                                      EVP_MD_CTX_free);
  bool is_good = state && EVP_DigestInit_ex(state.get(), EVP_sha256(), nullptr);
  std::vector<char> buffer(1 << 20);
  while (is_good && stream) {
    stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    is_good = EVP_DigestUpdate(state.get(), buffer.data(), stream.gcount());
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned count = 0;
  is_good = is_good && stream.eof() && EVP_DigestFinal_ex(state.get(), digest, &count);
  if (!is_good) throw InferError("a file cannot be read to its end, or OpenSSL has no SHA-256");
  std::string digits;
  for (unsigned i = 0; i < count; ++i) {
    for (const int shift : {4, 0}) digits += "0123456789abcdef"[digest[i] >> shift & 15];
  }
  return digits;
}

// The next value of a valid JSON text, as Python's json.dumps(value, sort_keys=True,
// separators=(",", ":")) has it, numbers spelled as in the text: the manifest's sha256 is that of
// this form without the member that holds it.
std::string canonical(const char*& at, const std::string& left_out = "") {
  const auto skip_blanks = [&] { at += std::strspn(at, " \n\r\t,:"); };
  skip_blanks();
  const char* begin = at;
  if (*begin == '"') {
    for (++at; *at != '"'; ++at) at += *at == '\\';
    return {begin, ++at};
  }
  if (*begin != '{' && *begin != '[') return {begin, at += std::strcspn(at, " \n\r\t,:}]")};
  std::map<std::string, std::string> members;  // by key without its quotation marks
  std::string items;
  for (++at, skip_blanks(); *at != '}' && *at != ']'; skip_blanks()) {
    std::string item = canonical(at);
    if (*begin == '[') {
      items += (items.empty() ? "" : ",") + item;
    } else {
      members[item.substr(1, item.size() - 2)] = canonical(at);
    }
  }
  members.erase(left_out);
  for (const auto& [key, value] : members) {
    items += (items.empty() ? "\"" : ",\"") + key + "\":" + value;
  }
  return *begin + items + *at++;
}

int64_t integer(const json& record, const char* key, int64_t minimum, int64_t maximum) {
  const json& found = record.at(key);
  if (!found.is_number_integer()) {
    throw DamagedArtifact(text(key, " is ", found.dump(), "; it must be an integer"));
  }
  const auto value = found.get<int64_t>();
  if (value >= minimum && value <= maximum) return value;
  throw DamagedArtifact(text(key, " is ", value, "; it must be in ", minimum, "..", maximum));
}

// A finite number of a record; get<double>() takes no text, and no bool.
double number(const json& record, const char* key, double minimum, double maximum) {
  const auto value = record.at(key).get<double>();
  if (std::isfinite(value) && value >= minimum && value <= maximum) return value;
  throw DamagedArtifact(text(key, " is ", value, "; it must be a finite number"));
}

std::string choice(const json& record, const char* key, const std::vector<std::string>& known) {
  const auto value = record.at(key).get<std::string>();
  if (std::find(known.begin(), known.end(), value) != known.end()) return value;
  std::string listed;
  for (const std::string& other : known) listed += (listed.empty() ? "" : ", ") + other;
  throw DamagedArtifact(text(key, " is ", value, "; it must be one of ", listed));
}

// The manifest, opened; waits for one that is being replaced.
std::unique_ptr<const HeldFile> hold_manifest(const path& folder) {
  for (int attempt = 1;; ++attempt) {
    try {
      return std::make_unique<const HeldFile>(folder / "manifest.json");
    } catch (const InferError&) {
      if (attempt < kAttempts) {
        std::this_thread::sleep_for(kPause);
        continue;
      }
      throw InferError(text(folder.string(), ": has no manifest.json that can be read, or there ",
                            "is no such folder; name the one that `mmad-fast fit --output` wrote"));
    }
  }
}

std::string read_text(const HeldFile& file) {
  std::ifstream stream(file.source(), std::ios::binary);
  std::ostringstream content;
  content << stream.rdbuf();
  return content.str();
}

void check_digest(const std::string& manifest_text, const json& manifest) {
  const char* at = manifest_text.c_str();
  std::istringstream stream(canonical(at, "manifest_sha256"));
  if (sha256(stream) == manifest.at("manifest_sha256").get<std::string>()) return;
  throw DamagedArtifact(
      "the manifest has been changed since it was written (its own sha256 differs)");
}

// Opens and compares the files that are read here; an artifact may hold large ones for other
// engines.
void hold_files(const json& manifest, Artifact& artifact) {
  for (const auto& entry : std::filesystem::directory_iterator(artifact.folder)) {
    const std::string name = entry.path().filename().string();
    const bool is_known = name.front() == '.' || name == "manifest.json" || name == "manifest.sig";
    if (!is_known && !manifest.at("files").contains(name)) {
      throw DamagedArtifact(text("the file ", name, " is not in the manifest"));
    }
    if (entry.is_symlink()) throw DamagedArtifact(text(name, " is a symbolic link"));
  }
  std::vector<path> read = {artifact.tensors_file(), artifact.golden_file()};
  for (const auto& [graph, file] : artifact.graphs) read.push_back(file);
  for (const path& file : read) {
    const std::string name = file.filename().string();
    try {
      artifact.held[file] = std::make_shared<const HeldFile>(file);
    } catch (const InferError&) {
      throw DamagedArtifact(text("the file ", name, " is missing"));
    }
    std::ifstream stream(artifact.source_of(file), std::ios::binary);
    const auto expected = manifest.at("files").at(name).at("sha256").get<std::string>();
    const std::string digest = sha256(stream);
    if (digest != expected) {
      throw DamagedArtifact(text(name, " has been changed (sha256 ", digest.substr(0, 12),
                                 "..., the manifest says ", expected.substr(0, 12), "...)"));
    }
  }
}

Recipe read_recipe(const json& record) {
  Recipe recipe;
  record.at("remove_background").get_to(recipe.remove_background);
  recipe.blackens_background = choice(record, "rgb_background", {"keep", "black"}) == "black";
  recipe.pads_by_edge = choice(record, "rgb_padding", {"edge", "zero"}) == "edge";
  recipe.plane.rim_width_px = integer(record, "rim_width_px", 1, INT32_MAX);
  recipe.plane.min_rim_points = integer(record, "min_rim_points", 1, INT32_MAX);
  record.at("min_inlier_fraction").get_to(recipe.plane.min_inlier_fraction);
  record.at("min_rim_coverage").get_to(recipe.plane.min_rim_coverage);
  record.at("plane_inlier_m").get_to(recipe.plane.plane_inlier_m);
  record.at("seed").get_to(recipe.plane.seed);
  record.at("plane_removal_m").get_to(recipe.plane_removal_m);
  record.at("cluster_radius_m").get_to(recipe.cluster_radius_m);
  recipe.cluster_min_points = integer(record, "cluster_min_points", 1, INT32_MAX);
  record.at("mean").get_to(recipe.mean);
  record.at("std").get_to(recipe.std);
  return recipe;
}

void read_missing_values(const json& record, Artifact* artifact) {
  record.at("largest_share").get_to(artifact->largest_missing_share);
  for (const json& value : record.at("values")) {
    std::array<double, 3> point;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      const json& number = value.at("point").at(axis);
      point[axis] = number.is_null() ? NAN : number.get<double>();
    }
    if (std::all_of(point.begin(), point.end(), [](double x) { return std::isnan(x); })) {
      throw DamagedArtifact("a missing value without a number would take away every pixel");
    }
    artifact->missing_values.push_back(point);
  }
}

Parameters read_parameters(const json& record) {
  Parameters parameters;
  parameters.rgb_size = integer(record, "rgb_size", 1, kMaxSide);
  parameters.token_grid = integer(record, "token_grid", 1, kMaxSide);
  parameters.grid_size = integer(record, "grid_size", 3, kMaxSide);
  parameters.num_groups = integer(record, "num_groups", 3, INT32_MAX);
  parameters.group_size = integer(record, "group_size", 1, INT32_MAX);
  parameters.pixel_stride = integer(record, "pixel_stride", 1, 4);
  record.at("skip_near_origin").get_to(parameters.skip_near_origin);
  parameters.aggregation =
      choice(record, "aggregation", {"product", "sum", "max", "psi_2d", "psi_3d"});
  parameters.mapping = choice(record, "mapping", {"crossmodal", "intramodal"});
  parameters.score_norm = choice(record, "score_norm", {"cfm", "raw"});
  parameters.smoothing = choice(record, "smoothing", {"boxes53", "sigma4"});
  return parameters;
}

Artifact parse_artifact(const path& folder, const std::string& manifest_text) {
  try {
    const json manifest = json::parse(manifest_text);
    Artifact artifact;
    artifact.folder = folder;
    manifest.at("schema").get_to(artifact.schema);
    if (artifact.schema > kSchema || artifact.schema < kOldestSchema) {
      throw InferError(text(folder.string(), ": has schema ", artifact.schema, ", this program ",
                            "reads ", kOldestSchema, " to ", kSchema,
                            artifact.schema > kSchema ? kUpgrade : kRefit));
    }
    check_digest(manifest_text, manifest);
    manifest.at("method").get_to(artifact.method);
    if (const auto family = manifest.at("family").get<std::string>(); family != "cfm") {
      throw InferError(text(folder.string(), ": is a detector of method ", artifact.method,
                            ", family ", family, "; this program runs the family cfm only: run it ",
                            "with mmad_fast in Python, or fit another: mmad-fast fit"));
    }
    const auto geometry = manifest.at("parameters").value("geometry", "point");
    if (geometry != "point") {
      throw InferError(text(folder.string(), ": is a detector of method ", artifact.method,
                            ", which compares colours with ", geometry, "; this program runs the ",
                            "variants with point groups only (cfm, cfm-m, cfm-s, cfm-t): run it ",
                            "with mmad_fast in Python, or fit one of those: mmad-fast fit"));
    }
    for (const char* name : {"rgb", "points"}) {
      const auto file = manifest.at("graphs").at(name).at("file").get<std::string>();
      artifact.graphs[name] = folder / path(file).filename();  // never a file outside
    }
    hold_files(manifest, artifact);
    artifact.recipe = read_recipe(manifest.at("preprocess"));
    artifact.parameters = read_parameters(manifest.at("parameters"));
    if (const json& threshold = manifest.at("threshold"); !threshold.is_null()) {
      // Where these are damaged, so may the value be, and every part could pass.
      integer(threshold, "num_scans", 1, 1000000000);
      number(threshold, "quantile", 0, 1);
      artifact.threshold = number(threshold, "value", -DBL_MAX, DBL_MAX);
    }
    if (artifact.schema >= 5) read_missing_values(manifest.at("missing_values"), &artifact);
    return artifact;
  } catch (const json::exception& error) {
    throw InferError(text(folder.string(), "/manifest.json: is not a readable manifest (",
                          error.what(), "); copy the artifact again or fit it again"));
  } catch (const DamagedArtifact& error) {
    throw InferError(
        text(folder.string(), ": ", error.what(), "; copy the artifact again or fit it again"));
  }
}

}  // namespace

HeldFile::HeldFile(path file)
    : file_(std::move(file)), descriptor_(open(file_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW)) {
  if (descriptor_ < 0) throw InferError(text(file_.string(), ": cannot be opened"));
}

HeldFile::~HeldFile() { close(descriptor_); }

path HeldFile::source() const {
  const path open_file = text("/proc/self/fd/", descriptor_);
  std::error_code failure;
  return std::filesystem::exists(open_file, failure) ? open_file : file_;
}

bool HeldFile::is_current() const {
  struct stat held{}, found{};
  return fstat(descriptor_, &held) == 0 && stat(file_.c_str(), &found) == 0 &&
         held.st_dev == found.st_dev && held.st_ino == found.st_ino;
}

path Artifact::source_of(const path& file) const {
  const auto found = held.find(file);
  return found == held.end() ? file : found->second->source();
}

std::map<std::string, std::string> Parameters::networks() const {
  const bool crosses = mapping == "crossmodal";
  std::map<std::string, std::string> names;
  if (aggregation != "psi_3d") names["psi_2d"] = crosses ? "point_to_rgb" : "rgb_to_rgb";
  if (aggregation != "psi_2d") names["psi_3d"] = crosses ? "rgb_to_point" : "point_to_point";
  return names;
}

Artifact read_artifact(const path& folder) {
  for (int attempt = 1;; ++attempt) {
    const auto manifest = hold_manifest(folder);
    try {
      return parse_artifact(folder, read_text(*manifest));
    } catch (const InferError&) {
      if (attempt >= kAttempts || manifest->is_current()) throw;
    }
  }
}

}  // namespace mmad_fast_infer
