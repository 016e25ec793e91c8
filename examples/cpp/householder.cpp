#include "householder.h"

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "common/simd.h"

namespace mmad_fast_infer {

// Columns are stored one after the other, and a reflection works on a column at a time: it stays in
// the first level cache while a panel of reflections passes.
constexpr int64_t kPanelColumns = 32;
constexpr int64_t kLanes = 8;

// x -= scale * (v . x) * v over count values. With external linkage for MMAD_FAST_MULTIVERSION.
void reflect(const double* v, double scale, double* x, int64_t count);

MMAD_FAST_MULTIVERSION void reflect(const double* v, double scale, double* x, int64_t count) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += v[i + lane] * x[i + lane];
  }
  double product = 0;
  for (; i < count; ++i) product += v[i] * x[i];
  for (const double lane : lanes) product += lane;
  product *= scale;
  for (i = 0; i < count; ++i) x[i] -= product * v[i];
}

namespace {

// Reflection k changes elements k .. m - 1: x -= scale * (v . x) * v, v = 0 before k.
struct Reflections {
  int64_t m;
  std::vector<double> vectors;  // vector k at k * m
  std::vector<double> scales;   // 0: the identity

  void apply(int64_t k, double* x) const { reflect(&vectors[k * m + k], scales[k], x + k, m - k); }
};

// Makes reflection k the one that turns the column's elements k .. m - 1 into (beta, 0, 0, ...).
void make_reflection(Reflections& reflections, int64_t k, double* column) {
  const int64_t m = reflections.m;
  double largest = 0;
  for (int64_t i = k + 1; i < m; ++i) largest = std::max(largest, std::abs(column[i]));
  if (largest == 0) return;
  largest = std::max(largest, std::abs(column[k]));
  double squares = 0;
  for (int64_t i = k; i < m; ++i) squares += (column[i] / largest) * (column[i] / largest);
  const double beta = -std::copysign(largest * std::sqrt(squares), column[k]);
  double* vector = &reflections.vectors[k * m];
  vector[k] = 1;
  for (int64_t i = k + 1; i < m; ++i) vector[i] = column[i] / (column[k] - beta);
  reflections.scales[k] = (beta - column[k]) / beta;
  column[k] = beta;
  std::fill(column + k + 1, column + m, 0.0);
}

// Turns the columns (n of m elements) into the triangle.
Reflections triangulate(std::vector<double>& columns, int64_t m, int64_t n) {
  const int64_t count = std::min(m, n);
  Reflections reflections{m, std::vector<double>(count * m), std::vector<double>(count)};
  for (int64_t panel = 0; panel < count; panel += kPanelColumns) {
    const int64_t panel_end = std::min(panel + kPanelColumns, count);
    for (int64_t k = panel; k < panel_end; ++k) {
      double* column = &columns[k * m];
      for (int64_t earlier = panel; earlier < k; ++earlier) reflections.apply(earlier, column);
      make_reflection(reflections, k, column);
    }
    mmad_fast::parallel_for(n - panel_end, 1, [&](int64_t begin, int64_t end) {
      for (int64_t column = panel_end + begin; column < panel_end + end; ++column) {
        for (int64_t k = panel; k < panel_end; ++k) reflections.apply(k, &columns[column * m]);
      }
    });
  }
  return reflections;
}

}  // namespace

Rotation triangular_rotation(const std::vector<double>& matrix, int64_t m, int64_t n) {
  std::vector<double> columns(m * n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) columns[j * m + i] = matrix[i * n + j];
  }
  const Reflections reflections = triangulate(columns, m, n);
  Rotation rotation{std::vector<double>(m * m), std::vector<double>(m * n)};
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) rotation.triangle[i * n + j] = columns[j * m + i];
  }
  // Row i is column i of Q; reflections after the i-th leave it as it is.
  const auto num_reflections = static_cast<int64_t>(reflections.scales.size());
  mmad_fast::parallel_for(m, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rotation.basis[i * m + i] = 1;
    for (int64_t k = std::min(num_reflections, end) - 1; k >= 0; --k) {
      for (int64_t i = std::max(begin, k); i < end; ++i) {
        reflections.apply(k, &rotation.basis[i * m]);
      }
    }
  });
  return rotation;
}

}  // namespace mmad_fast_infer
