// Sums of squares in double, the same on every instruction set.
#pragma once

#include <cstdint>

namespace mmad_fast {

// Partial sums that are kept: a fixed number, so that all instruction sets add in the same order.
constexpr int64_t kSumLanes = 16;

// The sum of kSumLanes partial sums.
inline double add_lanes(const double* lanes) {
  double sum = 0.0;
  for (int64_t lane = 0; lane < kSumLanes; ++lane) sum += lanes[lane];
  return sum;
}

// The sum of squares of values (count,).
double sum_squares(const float* values, int64_t count);

}  // namespace mmad_fast
