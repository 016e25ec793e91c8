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

MMAD_FAST_MULTIVERSION double squared_distance(const float* a, const float* b, int64_t count) {
  double lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int64_t lane = 0; lane < kSumLanes; ++lane) {
      const double difference = static_cast<double>(a[i + lane]) - b[i + lane];
      lanes[lane] += difference * difference;
    }
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) {
    const double difference = static_cast<double>(a[i]) - b[i];
    lanes[lane] += difference * difference;
  }
  return add_lanes(lanes);
}

MMAD_FAST_MULTIVERSION float rough_squared_distance(const float* a, const float* b, int64_t count) {
  float lanes[kFloatLanes] = {};
  int64_t i = 0;
  for (; i + kFloatLanes <= count; i += kFloatLanes) {
    for (int64_t lane = 0; lane < kFloatLanes; ++lane) {
      const float difference = a[i + lane] - b[i + lane];
      lanes[lane] += difference * difference;
    }
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) {
    const float difference = a[i] - b[i];
    lanes[lane] += difference * difference;
  }
  for (int64_t half = kFloatLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace mmad_fast
