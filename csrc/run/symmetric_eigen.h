// Eigenvalues of a symmetric 3 x 3 matrix.
#pragma once

#include <array>

namespace mmad_fast {

struct SymmetricEigen {
  std::array<double, 3> values;                  // ascending
  std::array<std::array<double, 3>, 3> vectors;  // of unit length, vectors[i] belongs to values[i]
};

// By Jacobi rotations.
SymmetricEigen symmetric_eigen(std::array<std::array<double, 3>, 3> matrix);

}  // namespace mmad_fast
