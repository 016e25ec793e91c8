// From the discrepancies to anomaly map and image score.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "artifact.h"

namespace mmad_fast_infer {

// The pixels whose discrepancy is computed: with pixel_stride 1 all, else of each block of stride x
// stride the one nearest to its centre.
struct EvaluatedPixels {
  std::vector<int64_t> positions;  // (R) into the P pixels
  std::vector<int64_t> owner;      // (P): which of the R stands for the pixel
};
EvaluatedPixels evaluated_pixels(const std::vector<int64_t>& pixel_indices,
                                 const Parameters& parameters);

// The anomaly map (S, S), from the discrepancies psi (P) by name ("psi_2d", "psi_3d") at
// pixel_indices (P). The image score is its maximum.
std::vector<float> anomaly_map(const std::map<std::string, std::vector<float>>& psi,
                               const std::vector<int64_t>& pixel_indices,
                               const Parameters& parameters);

}  // namespace mmad_fast_infer
