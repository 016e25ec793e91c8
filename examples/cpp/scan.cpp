#include "scan.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace mmad_fast_infer {
namespace {

constexpr int64_t kMinSidePx = 32;
constexpr int64_t kMaxSidePx = 1 << 15;
// No inspection camera stands nearer to the part, or sees farther.
constexpr double kMinPlausibleMetres = 0.005, kMaxPlausibleMetres = 20.0;

void check_shape(const Tensor& tensor, const std::string& name, const std::string& dtypes,
                 const std::filesystem::path& file) {
  const bool is_known = dtypes.find(tensor.dtype) != std::string::npos && !tensor.dtype.empty();
  if (is_known && tensor.shape.size() == 3 && tensor.shape[2] == 3) return;
  throw InferError(text(file.string(), ": ", name, " is ", tensor.dtype, " of shape ",
                        shape_text(tensor.shape), "; it must be ", dtypes, " (H, W, 3)"));
}

std::vector<float> single_precision(const Tensor& tensor) {
  if (tensor.dtype == "F32") return tensor.values<float>();
  const std::vector<double> values = tensor.values<double>();
  return {values.begin(), values.end()};
}

// Missing pixels become zeros; returns the largest magnitude.
double clear_missing(std::vector<float>& xyz) {
  float extent = 0;
  for (std::size_t i = 0; i < xyz.size(); i += 3) {
    if (!std::isfinite(xyz[i]) || !std::isfinite(xyz[i + 1]) || !std::isfinite(xyz[i + 2])) {
      std::fill_n(&xyz[i], 3, 0.0f);
    }
    for (int axis = 0; axis < 3; ++axis) extent = std::max(extent, std::abs(xyz[i + axis]));
  }
  return extent;
}

}  // namespace

Scan read_scan(const Tensors& tensors, const std::filesystem::path& file, double metres_per_unit) {
  const Tensor &rgb = find_tensor(tensors, "rgb", file), &xyz = find_tensor(tensors, "xyz", file);
  check_shape(rgb, "rgb", "U8", file);
  check_shape(xyz, "xyz", "F32 or F64", file);
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
  Scan scan{height, width, rgb.bytes, single_precision(xyz)};
  const double extent = clear_missing(scan.xyz) * metres_per_unit;
  if (extent > kMaxPlausibleMetres || (extent > 0 && extent < kMinPlausibleMetres)) {
    throw InferError(text(file.string(), ": xyz reaches ", extent, " m, which cannot be the ",
                          "distance of a part (", kMinPlausibleMetres, " to ", kMaxPlausibleMetres,
                          " m); check the unit: --unit m or --unit mm"));
  }
  if (metres_per_unit != 1.0) {
    for (float& value : scan.xyz) value *= static_cast<float>(metres_per_unit);
  }
  return scan;
}

}  // namespace mmad_fast_infer
