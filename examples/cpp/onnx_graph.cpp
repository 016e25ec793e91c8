#include "onnx_graph.h"

#include <utility>

#include "error.h"

namespace mmad_fast_infer {
namespace {

void initialize_api() {
  const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    throw InferError(
        text("the ONNX Runtime library is ", OrtGetApiBase()->GetVersionString(),
             ", older than the headers of API ", ORT_API_VERSION,
             " that this program was built with; put a newer libonnxruntime.so in its ",
             "place, or build with older headers"));
  }
  Ort::InitApi(api);
}

// As session_options in mmad_fast/engines/onnx_runtime.py, except for the planned reuse of buffers,
// which the C API cannot turn off: it costs memory, not time, and changes no number.
Ort::SessionOptions session_options(int num_threads) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(num_threads);
  options.SetInterOpNumThreads(1);
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
  // Idle threads that spin would take the cores from the compiled kernels between two graphs.
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  options.AddConfigEntry("session.use_env_allocators", "1");
  options.DisableMemPattern();
  return options;
}

using NamedShapes = std::map<std::string, OnnxGraph::Shape>;

OnnxGraph::Shape static_shape(const Ort::TypeInfo& type) {
  if (type.GetONNXType() != ONNX_TYPE_TENSOR) return {};
  const auto info = type.GetTensorTypeAndShapeInfo();
  if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return {};
  return info.GetShape();
}

OnnxGraph::Shape shape_of(const NamedShapes& shapes, const std::string& name) {
  const auto found = shapes.find(name);
  return found == shapes.end() ? OnnxGraph::Shape{} : found->second;
}

}  // namespace

OnnxRuntime::OnnxRuntime(int num_threads) {
  initialize_api();
  environment_ = Ort::Env(ORT_LOGGING_LEVEL_ERROR, "mmad_fast_infer");
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  // The library chooses its sizes.
  environment_.CreateAndRegisterAllocator(memory, Ort::ArenaCfg(0, -1, -1, -1));
  options_ = session_options(num_threads);
}

std::string OnnxRuntime::version() { return OrtGetApiBase()->GetVersionString(); }

OnnxGraph::OnnxGraph(OnnxRuntime& runtime, std::filesystem::path file) : file_(std::move(file)) {
  try {
    session_ = Ort::Session(runtime.environment(), file_.c_str(), runtime.options());
  } catch (const Ort::Exception& error) {
    throw InferError(text(file_.string(), ": ONNX Runtime ", OnnxRuntime::version(),
                          " cannot load the graph: ", error.what()));
  }
  Ort::AllocatorWithDefaultOptions allocator;
  for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
    input_shapes_[session_.GetInputNameAllocated(i, allocator).get()] =
        static_shape(session_.GetInputTypeInfo(i));
  }
  for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
    output_shapes_[session_.GetOutputNameAllocated(i, allocator).get()] =
        static_shape(session_.GetOutputTypeInfo(i));
  }
}

OnnxGraph::Shape OnnxGraph::input_shape(const std::string& name) const {
  return shape_of(input_shapes_, name);
}

OnnxGraph::Shape OnnxGraph::output_shape(const std::string& name) const {
  return shape_of(output_shapes_, name);
}

std::vector<float> OnnxGraph::run(const std::map<std::string, std::vector<float>*>& inputs,
                                  const std::string& output) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<const char*> names;
  std::vector<Ort::Value> values;
  for (const auto& [name, array] : inputs) {
    const Shape& shape = input_shapes_.at(name);
    names.push_back(name.c_str());
    values.push_back(Ort::Value::CreateTensor<float>(memory, array->data(), array->size(),
                                                     shape.data(), shape.size()));
  }
  const char* output_name = output.c_str();
  try {
    const auto results = session_.Run(Ort::RunOptions{nullptr}, names.data(), values.data(),
                                      values.size(), &output_name, 1);
    const auto count = results.front().GetTensorTypeAndShapeInfo().GetElementCount();
    const float* data = results.front().GetTensorData<float>();
    return {data, data + count};
  } catch (const Ort::Exception& error) {
    throw InferError(text(file_.string(), ": ONNX Runtime cannot run the graph: ", error.what()));
  }
}

}  // namespace mmad_fast_infer
