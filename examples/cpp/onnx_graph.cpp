#include "onnx_graph.h"

#include <utility>

#include "error.h"
#include "safetensors.h"

namespace mmad_fast_infer {
namespace {

OnnxGraph::Shape static_shape(const Ort::TypeInfo& type) {
  if (type.GetONNXType() != ONNX_TYPE_TENSOR) return {};
  const auto info = type.GetTensorTypeAndShapeInfo();
  if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return {};
  return info.GetShape();
}

}  // namespace

// The session's options are those of mmad_fast/engines/onnx_runtime.py, except for the planned
// reuse of buffers, which the C API cannot turn off: it costs memory and changes no number.
OnnxRuntime::OnnxRuntime(int num_threads) {
  const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    throw InferError(text("the ONNX Runtime library is ", version(), ", older than the headers of ",
                          "API ", ORT_API_VERSION,
                          " that this program was built with; put a newer ",
                          "libonnxruntime.so in its place, or build with older headers"));
  }
  Ort::InitApi(api);
  environment = Ort::Env(ORT_LOGGING_LEVEL_ERROR, "mmad_fast_infer");
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  // The library chooses its sizes.
  environment.CreateAndRegisterAllocator(memory, Ort::ArenaCfg(0, -1, -1, -1));
  options = Ort::SessionOptions();
  options.SetIntraOpNumThreads(num_threads);
  options.SetInterOpNumThreads(1);
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
  // Idle threads that spin would take the cores from the compiled kernels between two graphs.
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  options.AddConfigEntry("session.use_env_allocators", "1");
  options.DisableMemPattern();
}

std::string OnnxRuntime::version() { return OrtGetApiBase()->GetVersionString(); }

OnnxGraph::OnnxGraph(OnnxRuntime& runtime, std::filesystem::path file,
                     const std::filesystem::path& source)
    : file_(std::move(file)) {
  session_ = Ort::Session(runtime.environment, source.c_str(), runtime.options);
  Ort::AllocatorWithDefaultOptions allocator;
  for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
    shapes_[session_.GetInputNameAllocated(i, allocator).get()] =
        static_shape(session_.GetInputTypeInfo(i));
  }
  for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
    shapes_[session_.GetOutputNameAllocated(i, allocator).get()] =
        static_shape(session_.GetOutputTypeInfo(i));
  }
}

OnnxGraph::Shape OnnxGraph::require(const std::string& name, const Shape& wanted) const {
  const Shape found = shapes_.count(name) > 0 ? shapes_.at(name) : Shape{};
  bool fits = found.size() == wanted.size();
  for (std::size_t i = 0; fits && i < wanted.size(); ++i) {
    fits = found[i] == wanted[i] || (wanted[i] < 0 && found[i] > 0);
  }
  if (fits) return found;
  throw InferError(text(file_.string(), ": '", name, "' has shape ", shape_text(found),
                        ", the manifest's parameters need ", shape_text(wanted),
                        "; fit the detector again"));
}

std::vector<float> OnnxGraph::run(const std::map<std::string, std::vector<float>*>& inputs,
                                  const std::string& output) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<const char*> names;
  std::vector<Ort::Value> values;
  for (const auto& [name, array] : inputs) {
    const Shape& shape = shapes_.at(name);
    names.push_back(name.c_str());
    values.push_back(Ort::Value::CreateTensor<float>(memory, array->data(), array->size(),
                                                     shape.data(), shape.size()));
  }
  const char* output_name = output.c_str();
  const auto results = session_.Run(Ort::RunOptions{nullptr}, names.data(), values.data(),
                                    values.size(), &output_name, 1);
  const float* data = results.front().GetTensorData<float>();
  return {data, data + results.front().GetTensorTypeAndShapeInfo().GetElementCount()};
}

}  // namespace mmad_fast_infer
