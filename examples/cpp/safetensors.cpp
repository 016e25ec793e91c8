#include "safetensors.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "error.h"

namespace mmad_fast_infer {
namespace {

using nlohmann::json;

// 8 bytes, little-endian, before the header: its length.
constexpr int64_t kLengthBytes = 8;

int64_t item_size(const std::string& dtype) {
  static const std::map<std::string, int64_t> sizes = {{"U8", 1}, {"F32", 4}, {"F64", 8}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& reason) {
  throw InferError(text(file.string(), ": is not a readable safetensors file (", reason,
                        "); copy or write it again"));
}

std::vector<uint8_t> read_bytes(const std::filesystem::path& file) {
  std::error_code failure;
  if (!std::filesystem::is_regular_file(file, failure)) {
    throw InferError(text(file.string(), ": no such file; check the path"));
  }
  const auto size = std::filesystem::file_size(file, failure);
  if (failure) throw InferError(text(file.string(), ": cannot be read (", failure.message(), ")"));
  std::vector<uint8_t> bytes(size);
  std::ifstream stream(file, std::ios::binary);
  stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  if (!stream) {
    throw InferError(text(file.string(), ": cannot be read; check that you may read it"));
  }
  return bytes;
}

// The header's shape, with a number of bytes that fits int64_t: (shape, bytes).
std::pair<std::vector<int64_t>, int64_t> parse_shape(const json& entry, int64_t bytes_per_item) {
  const auto shape = entry.at("shape").get<std::vector<int64_t>>();
  int64_t bytes = bytes_per_item;
  for (const int64_t length : shape) {
    if (length < 0 || __builtin_mul_overflow(bytes, length, &bytes)) {
      throw InferError(text("shape ", shape_text(shape)));
    }
  }
  return {shape, bytes};
}

Tensor parse_tensor(const json& entry, const uint8_t* data, int64_t data_bytes) {
  Tensor tensor;
  tensor.dtype = entry.at("dtype").get<std::string>();
  const auto offsets = entry.at("data_offsets").get<std::vector<int64_t>>();
  if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0] || offsets[1] > data_bytes) {
    throw InferError(text("data offsets out of the file's ", data_bytes, " bytes of data"));
  }
  int64_t bytes = 0;
  std::tie(tensor.shape, bytes) = parse_shape(entry, item_size(tensor.dtype));
  if (item_size(tensor.dtype) == 0) return tensor;
  if (bytes != offsets[1] - offsets[0]) {
    throw InferError(text(offsets[1] - offsets[0], " bytes for ", tensor.dtype, " of shape ",
                          shape_text(tensor.shape)));
  }
  tensor.bytes.assign(data + offsets[0], data + offsets[1]);
  return tensor;
}

}  // namespace

Tensors read_safetensors(const std::filesystem::path& file) {
  const std::vector<uint8_t> content = read_bytes(file);
  const auto size = static_cast<int64_t>(content.size());
  if (size < kLengthBytes) refuse(file, text("it has ", size, " bytes"));
  uint64_t length = 0;
  for (int64_t i = kLengthBytes - 1; i >= 0; --i) length = length << 8 | content[i];
  if (length > static_cast<uint64_t>(size - kLengthBytes)) {
    refuse(file, text("a header of ", length, " bytes in a file of ", size, ": truncated?"));
  }
  const uint8_t* data = content.data() + kLengthBytes + length;
  const int64_t data_bytes = size - kLengthBytes - static_cast<int64_t>(length);
  Tensors tensors;
  try {
    const json header = json::parse(content.data() + kLengthBytes, data);
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      tensors[name] = parse_tensor(entry, data, data_bytes);
    }
  } catch (const json::exception& error) {
    refuse(file, error.what());
  } catch (const InferError& error) {
    refuse(file, error.what());
  }
  return tensors;
}

void write_safetensors(const std::filesystem::path& file, const Tensors& tensors) {
  json header = json::object();
  int64_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    const int64_t begin = end;
    end += static_cast<int64_t>(tensor.bytes.size());
    header[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string head = header.dump();
  head.resize((head.size() + 7) / 8 * 8, ' ');  // the data then begin at a multiple of 8
  const std::filesystem::path partial = file.string() + ".partial";
  {
    std::ofstream stream(partial, std::ios::binary);
    for (int64_t i = 0; i < kLengthBytes; ++i) {
      stream.put(static_cast<char>(head.size() >> (8 * i) & 0xff));
    }
    stream << head;
    for (const auto& [name, tensor] : tensors) {
      stream.write(reinterpret_cast<const char*>(tensor.bytes.data()),
                   static_cast<std::streamsize>(tensor.bytes.size()));
    }
    stream.flush();
    if (!stream) {
      std::error_code ignored;
      std::filesystem::remove(partial, ignored);
      throw InferError(text(file.string(),
                            ": cannot be written; name a file in a folder with room ",
                            "where you may write"));
    }
  }
  std::error_code failure;
  std::filesystem::rename(partial, file, failure);
  if (failure) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    throw InferError(text(file.string(), ": cannot be written (", failure.message(), ")"));
  }
}

const Tensor& find_tensor(const Tensors& tensors, const std::string& name,
                          const std::filesystem::path& file) {
  const auto found = tensors.find(name);
  if (found != tensors.end()) return found->second;
  std::string known;
  for (const auto& [other, tensor] : tensors) known += (known.empty() ? "" : ", ") + other;
  throw InferError(text(file.string(), ": has no tensor '", name,
                        "' (it has: ", known.empty() ? "none" : known, ")"));
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string result = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    result += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return result + ")";
}

}  // namespace mmad_fast_infer
