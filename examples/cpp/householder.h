// QR decomposition by Householder reflections.
#pragma once

#include <cstdint>
#include <vector>

namespace mmad_fast_infer {

struct Rotation {
  std::vector<double> basis;     // (m, m) orthogonal, row-major
  std::vector<double> triangle;  // (m, n) = basis * matrix, exactly 0 below the diagonal
};

// The transposed Q and the R of matrix (m, n), row-major.
Rotation triangular_rotation(const std::vector<double>& matrix, int64_t m, int64_t n);

}  // namespace mmad_fast_infer
