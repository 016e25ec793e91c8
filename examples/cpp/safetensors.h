// Arrays by name in a safetensors file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace mmad_fast_infer {

// One array, row-major; values of dtypes other than these are left out.
struct Tensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<float> floats;    // of F32
  std::vector<double> doubles;  // of F64
  std::vector<uint8_t> bytes;   // of U8
};

using Tensors = std::map<std::string, Tensor>;

// The arrays of the file, which is read from `source`. Throws InferError where it is missing,
// truncated or inconsistent.
Tensors read_safetensors(const std::filesystem::path& file, const std::filesystem::path& source);

// Writes "map" (side, side) F32 and "score" (1) F64; the whole file or none.
void write_answer(const std::filesystem::path& file, int64_t side, const std::vector<float>& map,
                  double score);

// The array of that name. Throws InferError, with the names that there are, where it is missing.
const Tensor& find_tensor(const Tensors& tensors, const std::string& name,
                          const std::filesystem::path& file);

// The float32 array of that name and shape. Throws InferError where it is missing, another, or has
// values that are not finite.
const std::vector<float>& find_floats(const Tensors& tensors, const std::string& name,
                                      const std::vector<int64_t>& shape,
                                      const std::filesystem::path& file);

// As in "(24, 16, 3)".
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace mmad_fast_infer
