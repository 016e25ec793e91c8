#include "safetensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "error.h"

namespace mmad_fast_infer {
namespace {

using nlohmann::json;

constexpr int64_t kLengthBytes = 8;  // before the header: its length, in this machine's byte order
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors files are little-endian");

std::vector<uint8_t> read_bytes(const std::filesystem::path& file,
                                const std::filesystem::path& source) {
  std::error_code failure;
  if (!std::filesystem::is_regular_file(source, failure)) {
    throw InferError(text(file.string(), ": no such file; check the path"));
  }
  std::vector<uint8_t> bytes(std::filesystem::file_size(source));
  std::ifstream stream(source, std::ios::binary);
  stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!stream)
    throw InferError(text(file.string(), ": cannot be read; check that you may read it"));
  return bytes;
}

Tensor parse_tensor(const json& entry, const uint8_t* data, int64_t data_bytes) {
  Tensor tensor{entry.at("dtype"), entry.at("shape"), {}, {}, {}};
  const auto [begin, end] = entry.at("data_offsets").get<std::array<int64_t, 2>>();
  if (begin < 0 || end < begin || end > data_bytes) {
    throw InferError(text("data offsets out of the file's ", data_bytes, " bytes of data"));
  }
  const auto fill = [&, first = data + begin, last = data + end](auto& values) {
    int64_t bytes = sizeof(values[0]);
    bool fits = true;
    for (const int64_t length : tensor.shape) {
      fits = fits && length >= 0 && !__builtin_mul_overflow(bytes, length, &bytes);
    }
    if (!fits || bytes != last - first) {
      throw InferError(
          text(last - first, " bytes of ", tensor.dtype, " ", shape_text(tensor.shape)));
    }
    values.resize(bytes / sizeof(values[0]));
    std::copy(first, last, reinterpret_cast<uint8_t*>(values.data()));
  };
  if (tensor.dtype == "F32") fill(tensor.floats);
  if (tensor.dtype == "F64") fill(tensor.doubles);
  if (tensor.dtype == "U8") fill(tensor.bytes);
  return tensor;
}

Tensors parse_tensors(const std::vector<uint8_t>& content) {
  const auto size = static_cast<int64_t>(content.size());
  if (size < kLengthBytes) throw InferError(text("it has ", size, " bytes"));
  uint64_t length = 0;
  std::memcpy(&length, content.data(), kLengthBytes);
  if (length > static_cast<uint64_t>(size - kLengthBytes)) {
    throw InferError(text("a header of ", length, " bytes in a file of ", size, ": truncated?"));
  }
  const uint8_t *header = content.data() + kLengthBytes, *data = header + length;
  Tensors tensors;
  const json entries = json::parse(header, data);
  for (const auto& [name, entry] : entries.items()) {
    if (name == "__metadata__") continue;
    tensors[name] = parse_tensor(entry, data, size - kLengthBytes - static_cast<int64_t>(length));
  }
  return tensors;
}

}  // namespace

Tensors read_safetensors(const std::filesystem::path& file, const std::filesystem::path& source) {
  const std::vector<uint8_t> content = read_bytes(file, source);
  try {
    return parse_tensors(content);
  } catch (const std::exception& error) {  // InferError, or of the JSON library
    throw InferError(text(file.string(), ": is not a readable safetensors file (", error.what(),
                          "); copy or write it again"));
  }
}

void write_answer(const std::filesystem::path& file, int64_t side, const std::vector<float>& map,
                  double score) {
  const auto map_bytes = static_cast<int64_t>(map.size() * sizeof(float));
  std::string header =
      text(R"({"map":{"dtype":"F32","shape":[)", side, ",", side, R"(],"data_offsets":[0,)",
           map_bytes, R"(]},"score":{"dtype":"F64","shape":[1],"data_offsets":[)", map_bytes, ",",
           map_bytes + 8, "]}}");
  header.resize((header.size() + 7) / 8 * 8, ' ');  // the data then begin at a multiple of 8
  const std::filesystem::path partial = file.string() + ".partial";
  std::ofstream stream(partial, std::ios::binary);
  const uint64_t length = header.size();
  stream.write(reinterpret_cast<const char*>(&length), kLengthBytes) << header;
  stream.write(reinterpret_cast<const char*>(map.data()), map_bytes);
  stream.write(reinterpret_cast<const char*>(&score), sizeof(score));
  stream.close();
  std::error_code failure;
  if (stream) std::filesystem::rename(partial, file, failure);
  if (stream && !failure) return;
  std::filesystem::remove(partial, failure);
  throw InferError(text(file.string(), ": cannot be written; name a file in a folder with room ",
                        "where you may write"));
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

const std::vector<float>& find_floats(const Tensors& tensors, const std::string& name,
                                      const std::vector<int64_t>& shape,
                                      const std::filesystem::path& file) {
  const Tensor& tensor = find_tensor(tensors, name, file);
  const auto& floats = tensor.floats;
  const auto is_finite = [](float value) { return std::isfinite(value); };
  if (tensor.dtype == "F32" && tensor.shape == shape &&
      std::all_of(floats.begin(), floats.end(), is_finite)) {
    return floats;
  }
  throw InferError(text(file.string(), ": ", name, " is ", tensor.dtype, " ",
                        shape_text(tensor.shape), "; it must be F32 ", shape_text(shape),
                        ", finite; fit the detector again"));
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string result;
  for (const int64_t length : shape)
    result += (result.empty() ? "" : ", ") + std::to_string(length);
  return "(" + result + ")";
}

}  // namespace mmad_fast_infer
