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
class OnnxRuntime {
 public:
  explicit OnnxRuntime(int num_threads);
  Ort::Env& environment() { return environment_; }
  const Ort::SessionOptions& options() const { return options_; }
  static std::string version();

 private:
  Ort::Env environment_{nullptr};
  Ort::SessionOptions options_{nullptr};
};

class OnnxGraph {
 public:
  using Shape = std::vector<int64_t>;

  // Throws InferError where the file cannot be loaded.
  OnnxGraph(OnnxRuntime& runtime, std::filesystem::path file);

  // Shape of the input or output of that name; -1: an axis that is not static. Empty: there is
  // none.
  Shape input_shape(const std::string& name) const;
  Shape output_shape(const std::string& name) const;

  // The output of that name, from one array per input, each of its input's shape.
  std::vector<float> run(const std::map<std::string, std::vector<float>*>& inputs,
                         const std::string& output);

 private:
  std::filesystem::path file_;
  Ort::Session session_{nullptr};
  std::map<std::string, Shape> input_shapes_, output_shapes_;
};

}  // namespace mmad_fast_infer
