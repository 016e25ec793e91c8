// A crossmodal mapping network of CFM as the pixel_mapping kernel reads it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "pixel_mapping/op.h"
#include "safetensors.h"

namespace mmad_fast_infer {

struct MappingNetwork {
  int64_t in_channels, out_channels;
  mmad_fast::PackedNetwork packed;
};

// The network whose tensors are named "NAME.input.weight", "NAME.projection....",
// "NAME.output....". Its last layer is rotated so that its weight is upper triangular, which halves
// that layer's work at every pixel; the discrepancy of rotated vectors is that of the vectors.
// Throws InferError where a tensor is missing or does not fit.
MappingNetwork read_mapping_network(const Tensors& tensors, const std::string& name,
                                    const std::filesystem::path& file);

}  // namespace mmad_fast_infer
