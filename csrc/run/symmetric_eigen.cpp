#include "run/symmetric_eigen.h"

#include <algorithm>
#include <cmath>

namespace mmad_fast {
namespace {

using Matrix = std::array<std::array<double, 3>, 3>;

constexpr int kMaxSweeps = 50;  // it converges quadratically: a handful is enough

// Rotates axes i and j so that matrix[i][j] becomes 0; `axes` has the directions as rows.
void rotate(Matrix& matrix, Matrix& axes, int i, int j) {
  if (matrix[i][j] == 0) return;
  const double slope = (matrix[j][j] - matrix[i][i]) / (2 * matrix[i][j]);
  const double tangent = std::copysign(1.0, slope) / (std::abs(slope) + std::hypot(slope, 1.0));
  const double cosine = 1 / std::hypot(tangent, 1.0), sine = tangent * cosine;
  const auto mix = [&](double& a, double& b) {
    const double old = a;
    a = cosine * old - sine * b;
    b = sine * old + cosine * b;
  };
  for (int k = 0; k < 3; ++k) mix(matrix[k][i], matrix[k][j]);
  for (int k = 0; k < 3; ++k) mix(matrix[i][k], matrix[j][k]);
  for (int k = 0; k < 3; ++k) mix(axes[i][k], axes[j][k]);
  matrix[i][j] = matrix[j][i] = 0;
}

}  // namespace

SymmetricEigen symmetric_eigen(Matrix matrix) {
  Matrix axes = {{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    if (matrix[0][1] == 0 && matrix[0][2] == 0 && matrix[1][2] == 0) break;
    rotate(matrix, axes, 0, 1);
    rotate(matrix, axes, 0, 2);
    rotate(matrix, axes, 1, 2);
  }
  std::array<int, 3> order = {0, 1, 2};
  std::sort(order.begin(), order.end(), [&](int a, int b) { return matrix[a][a] < matrix[b][b]; });
  SymmetricEigen eigen;
  for (int i = 0; i < 3; ++i) {
    eigen.values[i] = matrix[order[i]][order[i]];
    eigen.vectors[i] = axes[order[i]];
  }
  return eigen;
}

}  // namespace mmad_fast
