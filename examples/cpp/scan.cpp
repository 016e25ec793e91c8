#include "scan.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "foreground/op.h"
#include "run/network_input.h"
#include "run/scan_points.h"

namespace mmad_fast_infer {

using namespace mmad_fast;  // the kernels

namespace {

constexpr int64_t kMinSidePx = 32;
constexpr int64_t kMaxSidePx = 1 << 15;

const Tensor& find_image(const Tensors& tensors, const std::string& name, const std::string& dtypes,
                         const std::filesystem::path& file) {
  const Tensor& tensor = find_tensor(tensors, name, file);
  const bool is_known = dtypes.find(tensor.dtype) != std::string::npos && !tensor.dtype.empty();
  if (is_known && tensor.shape.size() == 3 && tensor.shape[2] == 3) return tensor;
  throw InferError(text(file.string(), ": ", name, " is ", tensor.dtype, " of shape ",
                        shape_text(tensor.shape), "; it must be ", dtypes, " (H, W, 3)"));
}

// State of each pixel (H, W): see foreground/op.h.
std::vector<uint8_t> pixel_states(const Scan& scan, const Recipe& recipe) {
  const float* xyz = scan.xyz.data();
  const int64_t num_pixels = scan.height * scan.width;
  std::vector<uint8_t> states(num_pixels);
  PlaneSearch search;
  if (recipe.remove_background) {
    search = find_background_plane(xyz, scan.height, scan.width, recipe.plane);
  }
  const double* plane = search.plane ? search.plane->data() : nullptr;
  mark_pixels(xyz, num_pixels, plane, recipe.plane_removal_m, states.data());
  if (recipe.remove_background) {
    keep_largest_cluster(xyz, num_pixels, recipe.cluster_radius_m, recipe.cluster_min_points,
                         states.data());
  }
  return states;
}

// rgb and xyz of a scan file, xyz not yet read.
Scan find_scan(const Tensors& tensors, const std::filesystem::path& file) {
  const Tensor& rgb = find_image(tensors, "rgb", "U8", file);
  const Tensor& xyz = find_image(tensors, "xyz", "F32 or F64", file);
  if (rgb.shape != xyz.shape) {
    throw InferError(text(file.string(), ": rgb is ", shape_text(rgb.shape), " and xyz is ",
                          shape_text(xyz.shape), "; they must be registered pixel by pixel"));
  }
  const int64_t height = rgb.shape[0], width = rgb.shape[1];
  if (std::min(height, width) < kMinSidePx || std::max(height, width) > kMaxSidePx) {
    throw InferError(text(file.string(), ": the scan is ", height, "x", width, " pixels; ",
                          kMinSidePx, " to ", kMaxSidePx,
                          " a side are needed: give the sensor's full image"));
  }
  return {height, width, rgb.bytes, std::vector<float>(3 * height * width)};
}

}  // namespace

Scan read_scan(const Tensors& tensors, const std::filesystem::path& file, const Coordinates& kind) {
  Scan scan = find_scan(tensors, file);
  const Tensor& xyz = find_tensor(tensors, "xyz", file);
  const int64_t num_pixels = scan.height * scan.width;
  const auto read = [&](const auto& raw) {
    return read_points(raw.data(), num_pixels, kind.units_per_metre, kind.missing, scan.xyz.data());
  };
  const ScanPoints points = xyz.dtype == "F64" ? read(xyz.doubles) : read(xyz.floats);
  // Not a number without any measurement: no matter of units.
  if (points.median_m > kMaxPlausibleMetres || points.median_m < kMinPlausibleMetres) {
    throw InferError(text(file.string(), ": half of the points of xyz reach ", points.median_m,
                          " m, which cannot be the distance of a part (", kMinPlausibleMetres,
                          " to ", kMaxPlausibleMetres, " m); check the unit: --unit m or --unit mm",
                          ", and whether a number stands for no measurement: --missing NUMBER"));
  }
  for (const MissingMark& mark : points.marks) {
    if (mark.num_pixels > 0) scan.missing.push_back(mark);
  }
  clear_marks(scan.xyz.data(), num_pixels, kind.known_marks, kind.units_per_metre, scan.xyz.data());
  return scan;
}

Scan read_golden_scan(const Tensors& tensors, const std::filesystem::path& file) {
  Scan scan = find_scan(tensors, file);
  scan.xyz = find_floats(tensors, "xyz", {scan.height, scan.width, 3}, file);
  if (std::all_of(scan.xyz.begin(), scan.xyz.end(), [](float x) { return std::isfinite(x); })) {
    return scan;
  }
  throw InferError(text(file.string(), ": xyz has values that are not finite; copy the artifact ",
                        "again or fit it again"));
}

PreparedScan prepare(const Scan& scan, const Recipe& recipe, int64_t rgb_size, int64_t grid_size) {
  const std::vector<uint8_t> states = pixel_states(scan, recipe);
  std::vector<uint8_t> rgb = scan.rgb, resized(3 * rgb_size * rgb_size);
  for (std::size_t i = 0; recipe.blackens_background && i < states.size(); ++i) {
    if (states[i] == kPixelRemoved) std::fill_n(&rgb[3 * i], 3, uint8_t{0});
  }
  const auto padding = square_padding(scan.height, scan.width);
  resize_padded_rgb(rgb.data(), scan.height, scan.width, padding, recipe.pads_by_edge, rgb_size,
                    resized.data());
  PreparedScan prepared;
  prepared.image.resize(resized.size());
  normalise_rgb(resized.data(), rgb_size * rgb_size, recipe.mean.data(), recipe.std.data(),
                prepared.image.data());
  std::vector<float> grid(3 * grid_size * grid_size);
  resize_padded_xyz(scan.xyz.data(), states.data(), scan.height, scan.width, padding, grid_size,
                    grid.data());
  for (int64_t i = 0; i < grid_size * grid_size; ++i) {
    const float* point = &grid[3 * i];
    if (point[2] == 0) continue;  // of a foreground pixel no coordinate is 0, of others all are
    prepared.points.insert(prepared.points.end(), point, point + 3);
    prepared.pixel_indices.push_back(i);
  }
  return prepared;
}

}  // namespace mmad_fast_infer
