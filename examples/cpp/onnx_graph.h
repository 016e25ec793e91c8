// A graph of static shapes run by ONNX Runtime on the CPU.
#pragma once

#define ORT_API_MANUAL_INIT  // so that a library older than the headers is refused, not called
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace mmad_fast_infer {

// ONNX Runtime for this process: one arena for all graphs. Throws InferError where the library is
// older than the headers.
struct OnnxRuntime {
  explicit OnnxRuntime(int num_threads);
  static std::string version();

  Ort::Env environment{nullptr};
  Ort::SessionOptions options{nullptr};
};

class OnnxGraph {
 public:
  using Shape = std::vector<int64_t>;

  // The graph of a file that is read from `source`. Throws Ort::Exception where it cannot be
  // loaded.
  OnnxGraph(OnnxRuntime& runtime, std::filesystem::path file, const std::filesystem::path& source);

  // Throws InferError unless the input or output of that name has this shape; -1: any length.
  // Returns the shape that it has.
  Shape require(const std::string& name, const Shape& wanted) const;

  // The output of that name, from one array per input, each of its input's shape.
  std::vector<float> run(const std::map<std::string, std::vector<float>*>& inputs,
                         const std::string& output);

 private:
  std::filesystem::path file_;
  Ort::Session session_{nullptr};
  std::map<std::string, Shape> shapes_;  // of inputs and outputs
};

}  // namespace mmad_fast_infer
