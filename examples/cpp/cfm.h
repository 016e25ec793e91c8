// The run half of CFM: scan in, anomaly map and image score out.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "artifact.h"
#include "common/sparse_rows.h"
#include "onnx_graph.h"
#include "pixel_mapping/op.h"
#include "point_embedding/op.h"
#include "scan.h"

namespace mmad_fast_infer {

// Milliseconds per stage, in order of execution.
using StageTimes = std::vector<std::pair<std::string, double>>;

struct Answer {
  std::vector<float> anomaly_map;  // (S, S) >= 0, exactly 0 far from the object
  double image_score;              // its maximum
  StageTimes stage_ms;
};

// The features of one modality: few, and how each pixel mixes them.
struct Features {
  std::vector<float> values;   // (T, C): tokens, row-major on the token grid, or point groups
  int64_t num_channels;        // C
  mmad_fast::SparseRows rows;  // (P x T)

  int64_t num_rows() const { return static_cast<int64_t>(values.size()) / num_channels; }
};

class CfmDetector {
 public:
  // Throws InferError where a graph or tensor is missing or does not fit the parameters.
  CfmDetector(const Artifact& artifact, OnnxRuntime& runtime);

  // Throws InferError for a scan with less foreground than one group holds.
  Answer infer(const Scan& scan);

 private:
  std::vector<int64_t> extract(PreparedScan& prepared, Features& rgb, Features& point,
                               StageTimes& times);

  Artifact artifact_;
  OnnxGraph rgb_, points_;
  mmad_fast::PackedEmbedder embedder_;
  std::map<std::string, mmad_fast::PackedNetwork> networks_;
  int64_t token_channels_, feature_channels_;
};

}  // namespace mmad_fast_infer
