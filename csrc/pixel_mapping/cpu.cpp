// Algorithm: interpolation is linear, so the first weight multiplies the few tokens. Then every
// thread takes strips of kStripRows pixels through all layers: expand the first layer's output,
// bias, GELU, next layer, ..., and compares the prediction with the expanded target, a pixel at a
// time. A strip's activations (about 1 MB) stay in the thread's cache; nothing of size pixels x
// channels is stored. Accumulation: float32 in the layers (see gemm.h), float64 in norms and
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

MMAD_FAST_MULTIVERSION void add_bias_gelu(const float* __restrict__ values,
                                          const float* __restrict__ bias, int64_t count,
                                          float* __restrict__ result) {
  for (int64_t i = 0; i < count; ++i) result[i] = gelu_of(values[i] + bias[i]);
}

MMAD_FAST_MULTIVERSION void add_bias(float* __restrict__ values, const float* __restrict__ bias,
                                     int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] += bias[i];
}

MMAD_FAST_MULTIVERSION void add_scaled(const float* __restrict__ values, float scale, int64_t count,
                                       float* __restrict__ sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += scale * values[i];
}

MMAD_FAST_MULTIVERSION void add_four_scaled(const float* const* sources, const float* scales,
                                            int64_t count, float* __restrict__ sum) {
  const float *a = sources[0], *b = sources[1], *c = sources[2], *d = sources[3];
  const float wa = scales[0], wb = scales[1], wc = scales[2], wd = scales[3];
  for (int64_t i = 0; i < count; ++i) {
    sum[i] = (((sum[i] + wa * a[i]) + wb * b[i]) + wc * c[i]) + wd * d[i];
  }
}

MMAD_FAST_MULTIVERSION double sum_squared_differences(const float* a, double a_scale,
                                                      const float* b, double b_scale,
                                                      int64_t count) {
  double lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int64_t lane = 0; lane < kSumLanes; ++lane) {
      const double difference = a[i + lane] * a_scale - b[i + lane] * b_scale;
      lanes[lane] += difference * difference;
    }
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) {
    const double difference = a[i] * a_scale - b[i] * b_scale;
    lanes[lane] += difference * difference;
  }
  return add_lanes(lanes);
}

}  // namespace pixel_mapping_kernels

namespace {

using namespace pixel_mapping_kernels;

constexpr double kNormFloor = 1e-12;  // torch.nn.functional.normalize

// One pixel's feature: sum (width floats) of the row's tokens, zero for an empty row.
void expand_row(const SparseRowsView& rows, int64_t pixel, const float* features, int64_t width,
                float* sum) {
  std::fill_n(sum, width, 0.0f);
  int64_t k = rows.offsets[pixel];
  const int64_t end = rows.offsets[pixel + 1];
  for (; k + 4 <= end; k += 4) {
    const float* sources[4];
    for (int i = 0; i < 4; ++i) sources[i] = features + rows.columns[k + i] * width;
    add_four_scaled(sources, rows.values + k, width, sum);
  }
  for (; k < end; ++k) {
    add_scaled(features + rows.columns[k] * width, rows.values[k], width, sum);
  }
}

// Row of a strip = gelu(values + bias).
void activate(const float* values, const float* bias, int64_t width, int64_t row, Strip& strip) {
  for (int64_t first = 0; first < width; first += kDepthBlock) {
    add_bias_gelu(values + first, bias + first, std::min(kDepthBlock, width - first),
                  strip.block(first / kDepthBlock, row));
  }
}

// |prediction / |prediction| - target / |target||
float normalized_distance(const float* prediction, const float* target, int64_t width) {
  const double prediction_norm = std::sqrt(sum_squares(prediction, width));
  const double target_norm = std::sqrt(sum_squares(target, width));
  return static_cast<float>(
      std::sqrt(sum_squared_differences(prediction, 1.0 / std::max(prediction_norm, kNormFloor),
                                        target, 1.0 / std::max(target_norm, kNormFloor), width)));
}

// What one thread needs for its strips.
class Worker {
 public:
  Worker(const PackedNetwork& network, const float* first, const SparseRowsView& source_rows,
         const float* target_features, const SparseRowsView& target_rows, float* psi)
      : network_(network),
        first_(first),
        source_rows_(source_rows),
        target_features_(target_features),
        target_rows_(target_rows),
        psi_(psi) {
    int64_t widest = 0;
    for (const PackedMatrix& weight : network.weights) {
      widest = std::max(widest, weight.n);
      if (&weight != &network.weights.front()) inputs_.emplace_back(weight.k);
    }
    row_.resize(widest);
    outputs_.resize(widest * kStripRows);
  }

  void run(int64_t begin, int64_t rows) {
    const int64_t hidden = network_.weights.front().n;
    for (int64_t row = 0; row < rows; ++row) {
      expand_row(source_rows_, begin + row, first_, hidden, row_.data());
      activate(row_.data(), network_.biases.front().data(), hidden, row, inputs_.front());
    }
    for (std::size_t layer = 1; layer < network_.weights.size(); ++layer) {
      const PackedMatrix& weight = network_.weights[layer];
      multiply_strip(inputs_[layer - 1], rows, weight, 0, weight.num_panels(), outputs_.data(),
                     weight.n);
      if (layer + 1 == network_.weights.size()) break;
      for (int64_t row = 0; row < rows; ++row) {
        activate(outputs_.data() + row * weight.n, network_.biases[layer].data(), weight.n, row,
                 inputs_[layer]);
      }
    }
    const int64_t width = network_.weights.back().n;
    for (int64_t row = 0; row < rows; ++row) {
      float* prediction = outputs_.data() + row * width;
      add_bias(prediction, network_.biases.back().data(), width);
      expand_row(target_rows_, begin + row, target_features_, width, row_.data());
      psi_[begin + row] = normalized_distance(prediction, row_.data(), width);
    }
  }

 private:
  const PackedNetwork& network_;
  const float* first_;
  const SparseRowsView& source_rows_;
  const float* target_features_;
  const SparseRowsView& target_rows_;
  float* psi_;
  std::vector<Strip> inputs_;  // of every layer but the first
  AlignedFloats outputs_;
  AlignedFloats row_;
};

}  // namespace

PackedNetwork pack_network(const std::vector<LinearView>& layers) {
  PackedNetwork network;
  for (const LinearView& layer : layers) {
    network.weights.push_back(pack_matrix(layer.weight, layer.out, layer.in, layer.in));
    network.biases.emplace_back(layer.bias, layer.bias + layer.out);
  }
  return network;
}

void pixel_mapping(const float* source_features, int64_t num_tokens,
                   const SparseRowsView& source_rows, const float* target_features,
                   const SparseRowsView& target_rows, const PackedNetwork& network, float* psi) {
  const int64_t pixels = source_rows.num_rows;
  if (pixels == 0) return;
  const PackedMatrix& weight = network.weights.front();
  AlignedFloats first(num_tokens * weight.n);
  gemm(source_features, num_tokens, weight.k, weight, first.data(), weight.n);

  const int64_t strips = (pixels + kStripRows - 1) / kStripRows;
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(num_threads(), strips), 1, [&](int64_t, int64_t) {
    Worker worker(network, first.data(), source_rows, target_features, target_rows, psi);
    for (int64_t strip = next++; strip < strips; strip = next++) {
      const int64_t begin = strip * kStripRows;
      worker.run(begin, std::min(kStripRows, pixels - begin));
    }
  });
}

void gelu(const float* values, int64_t count, float* result) { gelu_all(values, count, result); }

}  // namespace mmad_fast
