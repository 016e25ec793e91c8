// Sums of squares, the same on every instruction set.
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

// The sum of (a - b)^2 in double, of the float rows a and b (count,).
double squared_distance(const float* a, const float* b, int64_t count);

// Partial sums of rough_squared_distance.
constexpr int64_t kFloatLanes = 16;

// The same in float: at most count / kFloatLanes + 4 + 3 roundings on the way of every term.
float rough_squared_distance(const float* a, const float* b, int64_t count);

}  // namespace mmad_fast
