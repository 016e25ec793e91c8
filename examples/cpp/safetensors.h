// Arrays by name in a safetensors file.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace mmad_fast_infer {

// One array, row-major.
struct Tensor {
  std::string dtype;  // "U8", "F32" or "F64"; others are left unread
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;

  // The elements; T must be the dtype's.
  template <typename T>
  std::vector<T> values() const {
    std::vector<T> result(bytes.size() / sizeof(T));
    if (!result.empty()) std::memcpy(result.data(), bytes.data(), result.size() * sizeof(T));
    return result;
  }
};

template <typename T>
Tensor make_tensor(const char* dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
  Tensor tensor{dtype, std::move(shape), std::vector<uint8_t>(values.size() * sizeof(T))};
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  return tensor;
}

using Tensors = std::map<std::string, Tensor>;

// The arrays of the file. Throws InferError where it is missing, truncated or inconsistent.
Tensors read_safetensors(const std::filesystem::path& file);

// Writes the whole file or none.
void write_safetensors(const std::filesystem::path& file, const Tensors& tensors);

// The array of that name. Throws InferError, with the names that there are, where it is missing.
const Tensor& find_tensor(const Tensors& tensors, const std::string& name,
                          const std::filesystem::path& file);

// As in "(24, 16, 3)".
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace mmad_fast_infer
