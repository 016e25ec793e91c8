// Greedy k-centre selection on the CPU: plain steps on all threads.
#include "k_center_greedy/op.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "common/simd.h"
#include "common/sum_squares.h"

namespace mmad_fast {
namespace k_center_kernels {

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

}  // namespace k_center_kernels

namespace {

using namespace k_center_kernels;

constexpr std::chrono::milliseconds kReportEvery{100};
constexpr int64_t kRange = 512;  // rows

}  // namespace

int64_t k_center_greedy(const float* rows, int64_t num_rows, int64_t width, int64_t start,
                        int64_t num_samples, int64_t* indices,
                        const std::function<void(int64_t)>& report) {
  std::vector<float> nearest(num_rows, std::numeric_limits<float>::infinity());
  std::vector<int64_t> farthest((num_rows + kRange - 1) / kRange);  // of each range
  indices[0] = start;
  int64_t count = 1;
  auto reported = std::chrono::steady_clock::now();
  for (; count < num_samples; ++count) {
    const float* center = rows + indices[count - 1] * width;
    parallel_for(num_rows, kRange, [&](int64_t begin, int64_t end) {
      int64_t best = begin;
      for (int64_t row = begin; row < end; ++row) {
        const double squared = squared_distance(rows + row * width, center, width);
        nearest[row] = std::min(nearest[row], static_cast<float>(std::sqrt(squared)));
        if (nearest[row] > nearest[best]) best = row;
      }
      farthest[begin / kRange] = best;
    });
    int64_t best = farthest[0];
    for (const int64_t row : farthest) best = nearest[row] > nearest[best] ? row : best;
    if (nearest[best] == 0) break;
    indices[count] = best;
    if (std::chrono::steady_clock::now() - reported > kReportEvery) {
      report(count + 1);
      reported = std::chrono::steady_clock::now();
    }
  }
  report(count);
  return count;
}

}  // namespace mmad_fast
