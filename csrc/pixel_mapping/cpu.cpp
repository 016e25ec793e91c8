// Algorithm: interpolation is linear, so the first weight multiplies the few tokens, and the
// rotation that makes the last weight triangular the few targets. Then every thread takes strips of
// kStripRows pixels through all layers: expand the first layer's output, bias, GELU, next layer,
// ..., and compares the prediction with the expanded target. Each panel of a layer's output gets
// its bias and GELU while it is in the first level cache and goes straight into the next layer's
// strip. A strip's activations (about 1.4 MB) stay in the thread's cache; nothing of size pixels x
// channels is stored. Accumulation: float32 in layers and expansions, float64 in norms and
// differences. A pixel's result depends neither on the number of threads nor on its neighbours.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "common/parallel.h"
#include "common/simd.h"
#include "common/sum_squares.h"
#include "pixel_mapping/op.h"

namespace mmad_fast {
namespace pixel_mapping_kernels {

// As many floats as the widest registers hold; narrower instruction sets take several.
constexpr int64_t kLanes = 16;
static_assert(kLanes % kSumLanes == 0, "rows of whole vectors need no remainder in sums");
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), may_alias));
constexpr int64_t kExpandedLanes = 8;  // vectors that are summed side by side

// gelu(x) = max(x, 0) - z Q(z) with z = |x| and Q the upper tail of the normal distribution.
// Written like this nothing cancels, and only the small product z Q(z) <= 0.17 is approximate. Q(z)
// = polynomial(z)^-4, coefficients fitted on [0, 6] to an error of 1.1e-8 in z Q(z); beyond 6 the
// polynomial keeps growing and the product, 6e-9 there, goes to zero.
static inline float gelu_of(float x) {
  const float z = std::fabs(x);
  float p = 1.41012379e-06f;
  p = p * z - 1.93585947e-05f;
  p = p * z + 0.000130400513f;
  p = p * z - 0.000480453135f;
  p = p * z + 0.00123825553f;
  p = p * z - 0.00155198842f;
  p = p * z + 0.00361891207f;
  p = p * z + 0.00514932582f;
  p = p * z + 0.0317924581f;
  p = p * z + 0.118166216f;
  p = p * z + 0.237226889f;
  p = p * z + 1.1892066f;
  const float squared = p * p;
  const float tail = 1.0f / (squared * squared);
  return (x > 0.0f ? x : 0.0f) - z * tail;
}

MMAD_FAST_MULTIVERSION void gelu_all(const float* __restrict__ values, int64_t count,
                                     float* __restrict__ result) {
  for (int64_t i = 0; i < count; ++i) result[i] = gelu_of(values[i]);
}

// result[i][j] = gelu(values[i][j] + bias[j]); rows of `result` are kDepthBlock apart.
MMAD_FAST_MULTIVERSION void add_bias_gelu(const float* __restrict__ values, int64_t stride,
                                          const float* __restrict__ bias, int64_t rows,
                                          int64_t columns, float* __restrict__ result) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      result[i * kDepthBlock + j] = gelu_of(values[i * stride + j] + bias[j]);
    }
  }
}

// sum[0 .. vectors * kLanes) = sum_k weights[k] * tokens[columns[k]][first ..]
template <int kVectors>
static inline __attribute__((always_inline)) void expand_lanes(const float* const* tokens,
                                                               const int32_t* columns,
                                                               const float* weights, int64_t count,
                                                               int64_t first, float* sum) {
  Lanes sums[kVectors] = {};
  for (int64_t k = 0; k < count; ++k) {
    const Lanes* source = reinterpret_cast<const Lanes*>(tokens[columns[k]] + first);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[v] += weights[k] * source[v];
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) reinterpret_cast<Lanes*>(sum + first)[v] = sums[v];
}

// Rows begin .. begin + count - 1, each `width` floats (a multiple of kLanes, aligned), one part of
// the columns after the other: neighbouring pixels use the same tokens, whose parts then are still
// in the first level cache.
MMAD_FAST_MULTIVERSION void expand_rows(const float* const* tokens, const int64_t* offsets,
                                        const int32_t* columns, const float* weights, int64_t begin,
                                        int64_t count, int64_t width, float* expanded) {
  int64_t first = 0;
  for (; first + kExpandedLanes * kLanes <= width; first += kExpandedLanes * kLanes) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t k = offsets[begin + i];
      expand_lanes<kExpandedLanes>(tokens, columns + k, weights + k, offsets[begin + i + 1] - k,
                                   first, expanded + i * width);
    }
  }
  for (; first < width; first += kLanes) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t k = offsets[begin + i];
      expand_lanes<1>(tokens, columns + k, weights + k, offsets[begin + i + 1] - k, first,
                      expanded + i * width);
    }
  }
}

struct SquaredNorms {
  double prediction;
  double target;
};

// prediction += bias; count is a multiple of kSumLanes here and below.
MMAD_FAST_MULTIVERSION SquaredNorms add_bias_and_measure(float* __restrict__ prediction,
                                                         const float* __restrict__ bias,
                                                         const float* __restrict__ target,
                                                         int64_t count) {
  double predictions[kSumLanes] = {}, targets[kSumLanes] = {};
  for (int64_t i = 0; i < count; i += kSumLanes) {
    for (int64_t lane = 0; lane < kSumLanes; ++lane) {
      const float sum = prediction[i + lane] + bias[i + lane];
      prediction[i + lane] = sum;
      predictions[lane] += static_cast<double>(sum) * sum;
      targets[lane] += static_cast<double>(target[i + lane]) * target[i + lane];
    }
  }
  return {add_lanes(predictions), add_lanes(targets)};
}

MMAD_FAST_MULTIVERSION double sum_squared_differences(const float* a, double a_scale,
                                                      const float* b, double b_scale,
                                                      int64_t count) {
  double lanes[kSumLanes] = {};
  for (int64_t i = 0; i < count; i += kSumLanes) {
    for (int64_t lane = 0; lane < kSumLanes; ++lane) {
      const double difference = a[i + lane] * a_scale - b[i + lane] * b_scale;
      lanes[lane] += difference * difference;
    }
  }
  return add_lanes(lanes);
}

}  // namespace pixel_mapping_kernels

namespace {

using namespace pixel_mapping_kernels;

constexpr double kNormFloor = 1e-12;  // torch.nn.functional.normalize
constexpr int64_t kGroupRows = 16;    // pixels that are expanded together

int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// The features of the tokens that occur in some row, multiplied by a matrix. A row's length is
// filled up with zeros to whole vectors.
class MappedTokens {
 public:
  MappedTokens(const float* features, int64_t num_tokens, const SparseRowsView& rows,
               const PackedMatrix& matrix)
      : rows_(rows), width_(round_up(matrix.n, kLanes)), tokens_(num_tokens) {
    std::vector<char> is_used(num_tokens);
    for (int64_t k = 0; k < rows.offsets[rows.num_rows]; ++k) is_used[rows.columns[k]] = 1;
    std::vector<int64_t> used;
    for (int64_t token = 0; token < num_tokens; ++token) {
      if (is_used[token]) used.push_back(token);
    }
    mapped_.resize(used.size() * width_);
    gemm_of_rows(features, used, matrix.k, matrix, mapped_.data(), width_);
    for (std::size_t i = 0; i < used.size(); ++i) tokens_[used[i]] = mapped_.data() + i * width_;
  }

  int64_t width() const { return width_; }

  // Pixels begin .. begin + count - 1 into rows of width() floats.
  void expand(int64_t begin, int64_t count, float* expanded) const {
    expand_rows(tokens_.data(), rows_.offsets, rows_.columns, rows_.values, begin, count, width_,
                expanded);
  }

 private:
  const SparseRowsView& rows_;
  int64_t width_;
  std::vector<const float*> tokens_;  // null where unused
  AlignedFloats mapped_;
};

// |(prediction + bias) / |.| - target / |.||; the bias is added in place.
float normalized_distance(float* prediction, const float* bias, const float* target,
                          int64_t width) {
  const SquaredNorms norms = add_bias_and_measure(prediction, bias, target, width);
  const double prediction_scale = 1.0 / std::max(std::sqrt(norms.prediction), kNormFloor);
  const double target_scale = 1.0 / std::max(std::sqrt(norms.target), kNormFloor);
  return static_cast<float>(std::sqrt(
      sum_squared_differences(prediction, prediction_scale, target, target_scale, width)));
}

// What one thread needs for its strips.
class Worker {
 public:
  Worker(const PackedNetwork& network, const MappedTokens& sources, const MappedTokens& targets,
         float* psi)
      : network_(network), sources_(sources), targets_(targets), psi_(psi) {
    int64_t widest_panel = 1;
    for (const PackedMatrix& weight : network.weights) {
      widest_panel = std::max(widest_panel, weight.panel_width);
      if (&weight != &network.weights.front()) inputs_.emplace_back(weight.k);
    }
    panel_.resize(widest_panel * kStripRows);
    expanded_.resize(kGroupRows * std::max(sources.width(), targets.width()));
    prediction_.resize(kStripRows * targets.width());
  }

  void run(int64_t begin, int64_t rows) {
    for (int64_t row = 0; row < rows; row += kGroupRows) {
      expand_first_layer(begin, row, std::min(kGroupRows, rows - row));
    }
    for (std::size_t layer = 1; layer + 1 < network_.weights.size(); ++layer) {
      apply_hidden_layer(layer, rows);
    }
    const PackedMatrix& last = network_.weights.back();
    multiply_strip(inputs_.back(), rows, last, 0, last.num_panels(), prediction_.data(),
                   targets_.width());
    for (int64_t row = 0; row < rows; row += kGroupRows) {
      compare(begin, row, std::min(kGroupRows, rows - row));
    }
  }

 private:
  void expand_first_layer(int64_t begin, int64_t row, int64_t count) {
    sources_.expand(begin + row, count, expanded_.data());
    const int64_t hidden = network_.weights.front().n;
    for (int64_t first = 0; first < hidden; first += kDepthBlock) {
      add_bias_gelu(
          expanded_.data() + first, sources_.width(), network_.biases.front().data() + first, count,
          std::min(kDepthBlock, hidden - first), inputs_.front().block(first / kDepthBlock, row));
    }
  }

  void apply_hidden_layer(std::size_t layer, int64_t rows) {
    const PackedMatrix& weight = network_.weights[layer];
    const int64_t width = weight.panel_width;  // divides kDepthBlock
    for (int64_t panel = 0; panel < weight.num_panels(); ++panel) {
      const int64_t first = panel * width;
      multiply_strip(inputs_[layer - 1], rows, weight, panel, panel + 1, panel_.data(), width);
      add_bias_gelu(panel_.data(), width, network_.biases[layer].data() + first, rows,
                    std::min(width, weight.n - first),
                    inputs_[layer].block(first / kDepthBlock, 0) + first % kDepthBlock);
    }
  }

  void compare(int64_t begin, int64_t row, int64_t count) {
    targets_.expand(begin + row, count, expanded_.data());
    const int64_t width = targets_.width();
    for (int64_t i = 0; i < count; ++i) {
      psi_[begin + row + i] =
          normalized_distance(prediction_.data() + (row + i) * width, network_.biases.back().data(),
                              expanded_.data() + i * width, width);
    }
  }

  const PackedNetwork& network_;
  const MappedTokens& sources_;
  const MappedTokens& targets_;
  float* psi_;
  std::vector<Strip> inputs_;  // of every layer but the first
  AlignedFloats panel_;
  AlignedFloats expanded_;
  AlignedFloats
      prediction_;  // rows of targets_.width() floats, zero behind the last layer's outputs
};

}  // namespace

PackedNetwork pack_network(const std::vector<LinearView>& layers, const float* rotation) {
  PackedNetwork network;
  for (const LinearView& layer : layers) {
    network.weights.push_back(pack_matrix(layer.weight, layer.out, layer.in, layer.in));
    network.biases.emplace_back(round_up(layer.out, kLanes));
    std::copy_n(layer.bias, layer.out, network.biases.back().begin());
  }
  const int64_t out = layers.back().out;
  network.rotation = pack_matrix(rotation, out, out, out);
  return network;
}

void pixel_mapping(const float* source_features, int64_t num_source_tokens,
                   const SparseRowsView& source_rows, const float* target_features,
                   int64_t num_target_tokens, const SparseRowsView& target_rows,
                   const PackedNetwork& network, float* psi) {
  const int64_t pixels = source_rows.num_rows;
  if (pixels == 0) return;
  const MappedTokens sources(source_features, num_source_tokens, source_rows,
                             network.weights.front());
  const MappedTokens targets(target_features, num_target_tokens, target_rows, network.rotation);

  const int64_t strips = (pixels + kStripRows - 1) / kStripRows;
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(num_threads(), strips), 1, [&](int64_t, int64_t) {
    Worker worker(network, sources, targets, psi);
    for (int64_t strip = next++; strip < strips; strip = next++) {
      const int64_t begin = strip * kStripRows;
      worker.run(begin, std::min(kStripRows, pixels - begin));
    }
  });
}

void gelu(const float* values, int64_t count, float* result) { gelu_all(values, count, result); }

}  // namespace mmad_fast
