#include "cfm.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "common/point_index.h"
#include "error.h"
#include "farthest_point_sampling/op.h"
#include "inverse_distance_interpolation/op.h"
#include "knn_grouping/op.h"
#include "run/anomaly_map.h"
#include "run/bilinear_rows.h"

namespace mmad_fast_infer {

using namespace mmad_fast;  // the kernels

namespace {

template <typename T>
int64_t count(const std::vector<T>& values) {
  return static_cast<int64_t>(values.size());
}

// Runs a stage and writes down how long it took.
template <typename Work>
void timed(StageTimes& times, const char* name, Work work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - begin;
  times.emplace_back(name, taken.count());
}

void require_finite(const std::vector<float>& values, const std::string& what) {
  if (std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) return;
  throw InferError(text(what,
                        " are not finite; the scan's values or the artifact's weights are out ",
                        "of range: run `mmad-fast doctor ARTIFACT`, then check the scan"));
}

// The embedder's tensors are always of these sizes; those of the norms are there together where the
// statistics of the current cloud are taken, and else not at all.
PackedEmbedder read_embedder(const Tensors& tensors, const std::filesystem::path& file) {
  std::vector<const float*> at;
  const auto read = [&](const char* key, const std::vector<int64_t>& shape) {
    const bool is_norm = at.size() >= 8;
    const bool is_absent = is_norm && tensors.count("embedder.first_norm_weight") == 0;
    const std::string name = text("embedder.", key);
    at.push_back(is_absent ? nullptr : find_floats(tensors, name, shape, file).data());
  };
  read("first_weight", {kHiddenChannels, 3}), read("first_bias", {kHiddenChannels});
  read("wide_weight", {kLocalChannels, kHiddenChannels});
  read("local_weight", {kWideChannels, kHiddenChannels});
  read("group_weight", {kWideChannels, kLocalChannels}), read("group_bias", {kWideChannels});
  read("final_weight", {kTokenChannels, kWideChannels}), read("final_bias", {kTokenChannels});
  read("first_norm_weight", {kHiddenChannels}), read("first_norm_bias", {kHiddenChannels});
  read("second_norm_weight", {kWideChannels}), read("second_norm_bias", {kWideChannels});
  return pack_embedder(
      {at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], at[8], at[9], at[10], at[11]});
}

// The network whose tensors are named "NAME.input.weight", "NAME.projection...." and, of the last
// layer, "rotated.NAME.rotation", ".weight" and ".bias", see mmad_fast/ops/pixel_mapping/README.md.
PackedNetwork read_network(const Tensors& tensors, const std::string& name, int64_t in, int64_t out,
                           const std::filesystem::path& file) {
  std::vector<LinearView> layers;
  const auto read_layer = [&](const std::string& layer, int64_t layer_out) {
    const int64_t layer_in = layers.empty() ? in : layers.back().out;
    const auto& weight = find_floats(tensors, layer + ".weight", {layer_out, layer_in}, file);
    const auto& bias = find_floats(tensors, layer + ".bias", {layer_out}, file);
    layers.push_back({weight.data(), bias.data(), layer_out, layer_in});
  };
  for (const auto& [key, tensor] : tensors) {  // by name: the input, then the projections
    const bool is_inner = key.rfind(name + ".input.", 0) == 0 || key.rfind(name + ".proj", 0) == 0;
    const auto dot = key.rfind(".weight");
    if (is_inner && dot != std::string::npos && !tensor.shape.empty()) {
      read_layer(key.substr(0, dot), tensor.shape[0]);
    }
  }
  if (layers.empty())
    find_tensor(tensors, name + ".input.weight", file);  // says that it is missing
  read_layer("rotated." + name, out);
  const std::string rotation = "rotated." + name + ".rotation";
  return pack_network(layers, find_floats(tensors, rotation, {out, out}, file).data());
}

// The anomaly map (S, S) from the discrepancies (P) by name at pixel_indices (P).
std::vector<float> anomaly_map(std::map<std::string, std::vector<float>>& psi,
                               const std::vector<int64_t>& pixel_indices,
                               const Parameters& parameters) {
  std::vector<float> combined(pixel_indices.size());
  aggregate(parameters.aggregation, psi["psi_2d"].data(), psi["psi_3d"].data(), count(combined),
            combined.data());
  std::vector<float> map(parameters.grid_size * parameters.grid_size);
  for (std::size_t i = 0; i < combined.size(); ++i) map[pixel_indices[i]] = combined[i];
  smooth_map(parameters.smoothing, parameters.grid_size, map.data());
  const double mean = mean_of_nonzero(map.data(), count(map));
  if (parameters.score_norm == "cfm" && mean != 0) {
    for (float& value : map) value /= static_cast<float>(std::sqrt(mean));
  }
  return map;
}

}  // namespace

CfmDetector::CfmDetector(const Artifact& artifact, OnnxRuntime& runtime)
    : artifact_(artifact),
      rgb_(runtime, artifact.graphs.at("rgb"), artifact.source_of(artifact.graphs.at("rgb"))),
      points_(runtime, artifact.graphs.at("points"),
              artifact.source_of(artifact.graphs.at("points"))) {
  const Parameters& p = artifact_.parameters;
  rgb_.require("image", {1, 3, p.rgb_size, p.rgb_size});
  points_.require("tokens", {1, p.num_groups, kTokenChannels});
  points_.require("centers", {1, p.num_groups, 3});
  token_channels_ = rgb_.require("tokens", {1, p.token_grid * p.token_grid, -1})[2];
  feature_channels_ = points_.require("features", {1, p.num_groups, -1})[2];
  const std::filesystem::path file = artifact_.tensors_file();
  const Tensors tensors = read_safetensors(file, artifact_.source_of(file));
  embedder_ = read_embedder(tensors, file);
  for (const auto& [psi, name] : p.networks()) {
    const int64_t in = name.rfind("rgb", 0) == 0 ? token_channels_ : feature_channels_;
    const int64_t out = psi == "psi_2d" ? token_channels_ : feature_channels_;
    networks_.emplace(name, read_network(tensors, name, in, out, file));
  }
}

Answer CfmDetector::infer(const Scan& scan) {
  const Parameters& p = artifact_.parameters;
  Answer answer;
  PreparedScan prepared;
  timed(answer.stage_ms, "preprocess",
        [&] { prepared = prepare(scan, artifact_.recipe, p.rgb_size, p.grid_size); });
  const auto num_points = count(prepared.pixel_indices);
  if (num_points < p.group_size) {
    throw InferError(text("the scan has ", num_points, " foreground points on the ", p.grid_size,
                          "x", p.grid_size, " grid, the detector needs at least ", p.group_size,
                          "; check that the part is in view, that the unit is right, and that the ",
                          "background plane is not the part itself"));
  }
  Features rgb, point;
  const std::vector<int64_t> pixel_indices = extract(prepared, rgb, point, answer.stage_ms);
  std::map<std::string, std::vector<float>> psi;
  timed(answer.stage_ms, "mapping", [&] {
    const auto chosen = representative_pixels(pixel_indices.data(), count(pixel_indices),
                                              p.grid_size, p.pixel_stride);
    for (Features* features : {&rgb, &point}) {
      if (p.pixel_stride == 1) break;  // all represent themselves
      features->rows =
          select_rows(features->rows.view(), chosen.positions.data(), count(chosen.positions));
    }
    for (const auto& [name, network] : p.networks()) {
      const Features& source = network.rfind("rgb", 0) == 0 ? rgb : point;
      const Features& target = name == "psi_2d" ? rgb : point;
      std::vector<float> found(source.rows.num_rows());
      pixel_mapping(source.values.data(), source.num_rows(), source.rows.view(),
                    target.values.data(), target.num_rows(), target.rows.view(),
                    networks_.at(network), found.data());
      for (const int64_t number : chosen.number) psi[name].push_back(found[number]);
    }
  });
  timed(answer.stage_ms, "scoring", [&] {
    answer.anomaly_map = anomaly_map(psi, pixel_indices, p);
    answer.image_score = *std::max_element(answer.anomaly_map.begin(), answer.anomaly_map.end());
  });
  require_finite(answer.anomaly_map, "the anomaly map's values");
  return answer;
}

// Fills the features of both modalities; returns the pixels (P), ascending.
std::vector<int64_t> CfmDetector::extract(PreparedScan& prepared, Features& rgb, Features& point,
                                          StageTimes& times) {
  const Parameters& p = artifact_.parameters;
  const auto num_points = count(prepared.pixel_indices);
  timed(times, "rgb_tokens",
        [&] { rgb.values = rgb_.run({{"image", &prepared.image}}, "tokens"); });
  require_finite(rgb.values, "the RGB tokens");
  PointIndex index;
  std::vector<int64_t> center_indices(p.num_groups), neighbors(p.num_groups * p.group_size);
  std::vector<float> centers;                       // (G, 3)
  std::vector<float> groups(3 * neighbors.size());  // (G, K, 3)
  std::vector<float> group_tokens(p.num_groups * kTokenChannels);
  timed(times, "sampling", [&] {
    index = build_point_index(prepared.points.data(), num_points);
    farthest_point_sampling(index, p.num_groups, 0, p.skip_near_origin, center_indices.data());
    for (const int64_t i : center_indices) {
      centers.insert(centers.end(), &prepared.points[3 * i], &prepared.points[3 * i] + 3);
    }
  });
  timed(times, "grouping", [&] {
    knn_grouping(index, center_indices.data(), p.num_groups, p.group_size, neighbors.data(),
                 groups.data());
  });
  timed(times, "point_embedding", [&] {
    if (!point_embedding(groups.data(), p.num_groups, p.group_size, embedder_,
                         group_tokens.data())) {
      throw InferError("the embedder's activations may leave the range of float32; check the scan");
    }
  });
  require_finite(group_tokens, "the point embedder's tokens");
  timed(times, "point_features", [&] {
    point.values = points_.run({{"tokens", &group_tokens}, {"centers", &centers}}, "features");
  });
  require_finite(point.values, "the point features");
  PooledRows pooled;
  timed(times, "interpolation", [&] {
    std::vector<int64_t> nearest(3 * num_points);  // (N, 3), as weights
    std::vector<float> weights(nearest.size());
    inverse_distance_weights(index, centers.data(), p.num_groups, nearest.data(), weights.data());
    pooled =
        pooled_interpolation_rows(nearest.data(), weights.data(), prepared.pixel_indices.data(),
                                  num_points, p.num_groups, p.grid_size, p.grid_size);
    rgb.rows = bilinear_rows(pooled.pixel_indices.data(), count(pooled.pixel_indices), p.token_grid,
                             p.grid_size);
  });
  point.rows = std::move(pooled.rows);
  rgb.num_channels = token_channels_;
  point.num_channels = feature_channels_;
  return std::move(pooled.pixel_indices);
}

}  // namespace mmad_fast_infer
