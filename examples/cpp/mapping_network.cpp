#include "mapping_network.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "error.h"
#include "householder.h"

namespace mmad_fast_infer {
namespace {

struct Layer {
  int64_t out, in;
  std::vector<float> weight, bias;
};

Layer read_layer(const Tensors& tensors, const std::string& name,
                 const std::filesystem::path& file) {
  const Tensor& weight = find_tensor(tensors, name + ".weight", file);
  const Tensor& bias = find_tensor(tensors, name + ".bias", file);
  const bool fits = weight.dtype == "F32" && bias.dtype == "F32" && weight.shape.size() == 2 &&
                    weight.shape[0] > 0 && weight.shape[1] > 0 &&
                    bias.shape == std::vector<int64_t>{weight.shape[0]};
  if (!fits) {
    throw InferError(text(file.string(), ": ", name, " has a weight ", weight.dtype, " ",
                          shape_text(weight.shape), " and a bias ", bias.dtype, " ",
                          shape_text(bias.shape), "; they must be F32 (out, in) and (out); fit ",
                          "the detector again"));
  }
  return {weight.shape[0], weight.shape[1], weight.values<float>(), bias.values<float>()};
}

// "input", the projections in alphabetical order, "output".
std::vector<std::string> layer_names(const Tensors& tensors, const std::string& network) {
  const std::string prefix = network + ".projection";
  std::set<std::string> projections;
  for (const auto& [name, tensor] : tensors) {
    if (name.compare(0, prefix.size(), prefix) == 0) {
      projections.insert(name.substr(0, name.rfind('.')));
    }
  }
  std::vector<std::string> names = {network + ".input"};
  names.insert(names.end(), projections.begin(), projections.end());
  names.push_back(network + ".output");
  return names;
}

// Replaces the layer by itself followed by the rotation (out, out) that is returned.
std::vector<float> rotate_to_triangle(Layer& layer) {
  std::vector<double> weight(layer.weight.begin(), layer.weight.end());
  const Rotation rotation = triangular_rotation(weight, layer.out, layer.in);
  std::vector<double> bias(layer.out, 0.0);
  for (int64_t row = 0; row < layer.out; ++row) {
    for (int64_t column = 0; column < layer.out; ++column) {
      bias[row] += rotation.basis[row * layer.out + column] * layer.bias[column];
    }
  }
  layer.weight.assign(rotation.triangle.begin(), rotation.triangle.end());
  layer.bias.assign(bias.begin(), bias.end());
  return {rotation.basis.begin(), rotation.basis.end()};
}

bool is_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace

MappingNetwork read_mapping_network(const Tensors& tensors, const std::string& name,
                                    const std::filesystem::path& file) {
  std::vector<Layer> layers;
  for (const std::string& layer : layer_names(tensors, name)) {
    layers.push_back(read_layer(tensors, layer, file));
    if (!is_finite(layers.back().weight) || !is_finite(layers.back().bias)) {
      throw InferError(text(file.string(), ": ", layer, " has values that are not finite; fit the ",
                            "detector again"));
    }
    if (layers.size() > 1 && layers.back().in != layers[layers.size() - 2].out) {
      throw InferError(text(file.string(), ": ", layer, " reads ", layers.back().in,
                            " channels, the layer before it writes ", layers[layers.size() - 2].out,
                            "; fit the detector again"));
    }
  }
  const std::vector<float> rotation = rotate_to_triangle(layers.back());
  std::vector<mmad_fast::LinearView> views;
  for (const Layer& layer : layers) {
    views.push_back({layer.weight.data(), layer.bias.data(), layer.out, layer.in});
  }
  return {layers.front().in, layers.back().out, mmad_fast::pack_network(views, rotation.data())};
}

}  // namespace mmad_fast_infer
