#include "common/sum_squares.h"

#include "common/simd.h"

namespace mmad_fast {

MMAD_FAST_MULTIVERSION double sum_squares(const float* values, int64_t count) {
  double lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int64_t lane = 0; lane < kSumLanes; ++lane) {
      const double value = values[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) {
    lanes[lane] += static_cast<double>(values[i]) * values[i];
  }
  return add_lanes(lanes);
}

}  // namespace mmad_fast
