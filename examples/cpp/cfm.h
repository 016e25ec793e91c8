// The run half of CFM: scan in, anomaly map and image score out.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "artifact.h"
#include "mapping_network.h"
#include "onnx_graph.h"
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

class CfmDetector {
 public:
  // Throws InferError where a graph or tensor is missing or does not fit the parameters.
  CfmDetector(const Artifact& artifact, OnnxRuntime& runtime);

  // Throws InferError for a scan with less foreground than one group holds.
  Answer infer(const Scan& scan);

 private:
  // The features of one scan: few tokens and groups, and how each pixel mixes them.
  struct Features;
  Features extract(PreparedScan& prepared, StageTimes& times);
  std::vector<float> discrepancy(const Features& features, const std::string& network) const;

  Artifact artifact_;
  OnnxGraph rgb_, points_;
  mmad_fast::PackedEmbedder embedder_;
  std::map<std::string, MappingNetwork> networks_;
  int64_t token_channels_, feature_channels_;
};

}  // namespace mmad_fast_infer
