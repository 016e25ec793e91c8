// Sums in the order of NumPy's reductions, for decisions and answers that are to be the same.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mmad_fast {

// The sum of values (count,), each converted to Sum first: eight partial sums, halves of more than
// 128 values one after the other.
template <typename Sum, typename Value>
Sum pairwise_sum(const Value* values, int64_t count) {
  if (count > 128) {
    const int64_t half = count / 2 - count / 2 % 8;
    return pairwise_sum<Sum>(values, half) + pairwise_sum<Sum>(values + half, count - half);
  }
  Sum lanes[8] = {};
  if (count < 8) {
    for (int64_t i = 0; i < count; ++i) lanes[0] += values[i];
    return lanes[0];
  }
  std::copy_n(values, 8, lanes);
  int64_t i = 8;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += values[i + lane];
  }
  Sum sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
            ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  for (; i < count; ++i) sum += values[i];
  return sum;
}

}  // namespace mmad_fast
