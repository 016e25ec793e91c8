#include "cfm.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "common/point_index.h"
#include "error.h"
#include "farthest_point_sampling/op.h"
#include "inverse_distance_interpolation/op.h"
#include "knn_grouping/op.h"
#include "preprocess.h"
#include "scoring.h"
#include "sparse_rows.h"

namespace mmad_fast_infer {
namespace {

// Writes down how long a stage took when it goes out of scope.
class Stage {
 public:
  Stage(StageTimes& times, std::string name) : times_(times), name_(std::move(name)) {}
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  ~Stage() {
    const std::chrono::duration<double, std::milli> taken = Clock::now() - begin_;
    times_.emplace_back(std::move(name_), taken.count());
  }

 private:
  using Clock = std::chrono::steady_clock;
  StageTimes& times_;
  std::string name_;
  Clock::time_point begin_ = Clock::now();
};

void require_finite(const std::vector<float>& values, const std::string& what) {
  if (std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) return;
  throw InferError(text(what,
                        " are not finite; the scan's values or the artifact's weights are out ",
                        "of range: run `mmad-fast doctor ARTIFACT`, then check the scan"));
}

// The embedder's tensors are always of these sizes; those of the norms are there together where the
// statistics of the current cloud are taken, and else not at all.
mmad_fast::PackedEmbedder read_embedder(const Tensors& tensors, const std::filesystem::path& file) {
  using mmad_fast::kHiddenChannels, mmad_fast::kLocalChannels, mmad_fast::kTokenChannels,
      mmad_fast::kWideChannels;
  std::vector<std::vector<float>> kept;
  kept.reserve(12);
  const auto read = [&](const char* key, const std::vector<int64_t>& shape) {
    const std::string name = text("embedder.", key);
    const Tensor& tensor = find_tensor(tensors, name, file);
    if (tensor.dtype != "F32" || tensor.shape != shape) {
      throw InferError(text(file.string(), ": ", name, " is ", tensor.dtype, " ",
                            shape_text(tensor.shape), "; it must be F32 ", shape_text(shape),
                            "; fit the detector again"));
    }
    kept.push_back(tensor.values<float>());
    require_finite(kept.back(), text(file.string(), ": the values of ", name));
    return static_cast<const float*>(kept.back().data());
  };
  mmad_fast::EmbedderView view{};
  view.first_weight = read("first_weight", {kHiddenChannels, 3});
  view.first_bias = read("first_bias", {kHiddenChannels});
  view.wide_weight = read("wide_weight", {kLocalChannels, kHiddenChannels});
  view.local_weight = read("local_weight", {kWideChannels, kHiddenChannels});
  view.group_weight = read("group_weight", {kWideChannels, kLocalChannels});
  view.group_bias = read("group_bias", {kWideChannels});
  view.final_weight = read("final_weight", {kTokenChannels, kWideChannels});
  view.final_bias = read("final_bias", {kTokenChannels});
  if (tensors.count("embedder.first_norm_weight") > 0) {
    view.first_norm_weight = read("first_norm_weight", {kHiddenChannels});
    view.first_norm_bias = read("first_norm_bias", {kHiddenChannels});
    view.second_norm_weight = read("second_norm_weight", {kWideChannels});
    view.second_norm_bias = read("second_norm_bias", {kWideChannels});
  }
  return mmad_fast::pack_embedder(view);
}

void require_shape(const std::filesystem::path& file, const std::string& name,
                   const OnnxGraph::Shape& found, const OnnxGraph::Shape& wanted) {
  if (found == wanted) return;
  throw InferError(text(file.string(), ": '", name, "' has shape ", shape_text(found),
                        ", the manifest's parameters need ", shape_text(wanted),
                        "; fit the detector again"));
}

// The last axis of an output (1, rows, channels).
int64_t channels_of(const std::filesystem::path& file, const OnnxGraph& graph,
                    const std::string& name, int64_t rows) {
  const OnnxGraph::Shape shape = graph.output_shape(name);
  const int64_t channels = shape.size() == 3 ? std::max<int64_t>(shape[2], 1) : 1;
  require_shape(file, name, shape, {1, rows, channels});
  return channels;
}

// The three coordinates of the listed points.
std::vector<float> take_points(const std::vector<float>& points,
                               const std::vector<int64_t>& indices) {
  std::vector<float> taken;
  taken.reserve(3 * indices.size());
  for (const int64_t i : indices) {
    taken.insert(taken.end(), &points[3 * i], &points[3 * i] + 3);
  }
  return taken;
}

}  // namespace

struct CfmDetector::Features {
  std::vector<float> tokens;           // (T, C2), row-major on the token grid
  SparseRows token_rows;               // (P x T) bilinear weights
  std::vector<float> point_features;   // (G, C3)
  SparseRows point_rows;               // (P x G) interpolation and pooling weights
  std::vector<int64_t> pixel_indices;  // (P), ascending
};

CfmDetector::CfmDetector(const Artifact& artifact, OnnxRuntime& runtime)
    : artifact_(artifact),
      rgb_(runtime, artifact.graphs.at("rgb")),
      points_(runtime, artifact.graphs.at("points")) {
  const Parameters& p = artifact_.parameters;
  const auto &rgb_file = artifact_.graphs.at("rgb"), &points_file = artifact_.graphs.at("points");
  require_shape(rgb_file, "image", rgb_.input_shape("image"), {1, 3, p.rgb_size, p.rgb_size});
  require_shape(points_file, "tokens", points_.input_shape("tokens"),
                {1, p.num_groups, mmad_fast::kTokenChannels});
  require_shape(points_file, "centers", points_.input_shape("centers"), {1, p.num_groups, 3});
  token_channels_ = channels_of(rgb_file, rgb_, "tokens", p.token_grid * p.token_grid);
  feature_channels_ = channels_of(points_file, points_, "features", p.num_groups);
  const std::filesystem::path file = artifact_.tensors_file();
  const Tensors tensors = read_safetensors(file);
  embedder_ = read_embedder(tensors, file);
  for (const auto& [psi, name] : p.networks()) {
    MappingNetwork network = read_mapping_network(tensors, name, file);
    const int64_t in = name.rfind("rgb", 0) == 0 ? token_channels_ : feature_channels_;
    const int64_t out = psi == "psi_2d" ? token_channels_ : feature_channels_;
    if (network.in_channels != in || network.out_channels != out) {
      throw InferError(text(file.string(), ": network ", name, " maps ", network.in_channels,
                            " to ", network.out_channels, " channels, the graphs need ", in, " to ",
                            out, "; fit the detector again"));
    }
    networks_.emplace(name, std::move(network));
  }
}

Answer CfmDetector::infer(const Scan& scan) {
  const Parameters& parameters = artifact_.parameters;
  Answer answer;
  PreparedScan prepared;
  {
    const Stage stage(answer.stage_ms, "preprocess");
    prepared = prepare(scan, artifact_.recipe, parameters.rgb_size, parameters.grid_size);
  }
  const auto num_points = static_cast<int64_t>(prepared.pixel_indices.size());
  if (num_points < parameters.group_size) {
    throw InferError(text("the scan has ", num_points, " foreground points on the ",
                          parameters.grid_size, "x", parameters.grid_size, " grid, the detector ",
                          "needs at least ", parameters.group_size, "; check that the part is in ",
                          "view, that the unit is right, and that the background plane is not the ",
                          "part itself"));
  }
  Features features = extract(prepared, answer.stage_ms);
  const std::vector<int64_t> pixel_indices = features.pixel_indices;
  std::map<std::string, std::vector<float>> psi;
  {
    const Stage stage(answer.stage_ms, "mapping");
    const EvaluatedPixels evaluated = evaluated_pixels(pixel_indices, parameters);
    if (parameters.pixel_stride > 1) {
      features.token_rows = features.token_rows.select(evaluated.positions);
      features.point_rows = features.point_rows.select(evaluated.positions);
    }
    for (const auto& [name, network] : parameters.networks()) {
      const std::vector<float> found = discrepancy(features, network);
      for (const int64_t owner : evaluated.owner) psi[name].push_back(found[owner]);
    }
  }
  {
    const Stage stage(answer.stage_ms, "scoring");
    answer.anomaly_map = anomaly_map(psi, pixel_indices, parameters);
    answer.image_score = *std::max_element(answer.anomaly_map.begin(), answer.anomaly_map.end());
  }
  require_finite(answer.anomaly_map, "the anomaly map's values");
  return answer;
}

CfmDetector::Features CfmDetector::extract(PreparedScan& prepared, StageTimes& times) {
  const Parameters& p = artifact_.parameters;
  const auto num_points = static_cast<int64_t>(prepared.pixel_indices.size());
  Features features;
  {
    const Stage stage(times, "rgb_tokens");
    features.tokens = rgb_.run({{"image", &prepared.image}}, "tokens");
    require_finite(features.tokens, "the RGB tokens");
  }
  mmad_fast::PointIndex index;
  std::vector<int64_t> center_indices(p.num_groups);
  std::vector<float> centers;  // (G, 3)
  {
    const Stage stage(times, "sampling");
    index = mmad_fast::build_point_index(prepared.points.data(), num_points);
    mmad_fast::farthest_point_sampling(index, p.num_groups, 0, p.skip_near_origin,
                                       center_indices.data());
    centers = take_points(prepared.points, center_indices);
  }
  std::vector<float> groups(p.num_groups * p.group_size * 3);  // (G, K, 3)
  {
    const Stage stage(times, "grouping");
    std::vector<int64_t> neighbors(p.num_groups * p.group_size);
    mmad_fast::knn_grouping(index, center_indices.data(), p.num_groups, p.group_size,
                            neighbors.data(), groups.data());
  }
  std::vector<float> group_tokens(p.num_groups * mmad_fast::kTokenChannels);
  {
    const Stage stage(times, "point_embedding");
    if (!mmad_fast::point_embedding(groups.data(), p.num_groups, p.group_size, embedder_,
                                    group_tokens.data())) {
      throw InferError("the embedder's activations may leave the range of float32; check the scan");
    }
    require_finite(group_tokens, "the point embedder's tokens");
  }
  {
    const Stage stage(times, "point_features");
    features.point_features =
        points_.run({{"tokens", &group_tokens}, {"centers", &centers}}, "features");
    require_finite(features.point_features, "the point features");
  }
  {
    const Stage stage(times, "interpolation");
    std::vector<int64_t> nearest(3 * num_points);
    std::vector<float> weights(3 * num_points);
    mmad_fast::inverse_distance_weights(index, centers.data(), p.num_groups, nearest.data(),
                                        weights.data());
    mmad_fast::PooledRows pooled = mmad_fast::pooled_interpolation_rows(
        nearest.data(), weights.data(), prepared.pixel_indices.data(), num_points, p.num_groups,
        p.grid_size, p.grid_size);
    features.pixel_indices = std::move(pooled.pixel_indices);
    features.point_rows = {std::move(pooled.offsets), std::move(pooled.columns),
                           std::move(pooled.values)};
    features.token_rows = bilinear_rows(features.pixel_indices, p.token_grid, p.grid_size);
  }
  return features;
}

std::vector<float> CfmDetector::discrepancy(const Features& features,
                                            const std::string& network) const {
  struct Side {
    const std::vector<float>& features;
    const SparseRows& rows;
    int64_t channels;
  };
  const Side rgb{features.tokens, features.token_rows, token_channels_};
  const Side point{features.point_features, features.point_rows, feature_channels_};
  const Side& source = network.rfind("rgb", 0) == 0 ? rgb : point;
  const Side& target = network.find("_to_rgb") != std::string::npos ? rgb : point;
  std::vector<float> psi(source.rows.num_rows());
  const auto num_rows = [](const Side& side) {
    return static_cast<int64_t>(side.features.size()) / side.channels;
  };
  mmad_fast::pixel_mapping(source.features.data(), num_rows(source), source.rows.view(),
                           target.features.data(), num_rows(target), target.rows.view(),
                           networks_.at(network).packed, psi.data());
  return psi;
}

}  // namespace mmad_fast_infer
