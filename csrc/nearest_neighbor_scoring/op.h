// The nearest row of a memory bank for every query.
#pragma once

#include <cstdint>
#include <vector>

namespace mmad_fast {

// A bank's rows (num_rows x width, row-major, the caller's memory) and what scoring needs of them.
struct Bank {
  const float* rows;
  int64_t num_rows;
  int64_t width;
  std::vector<double> squared_norms;
};

Bank prepare_bank(const float* rows, int64_t num_rows, int64_t width);

// distances[q] = min over m of |queries[q] - bank[m]|, indices[q] = the lowest m that reaches it.
// Both are what float64 arithmetic on the float32 inputs gives; see cpu.cpp. bank.num_rows >= 1.
void nearest_neighbor_scoring(const float* queries, int64_t num_queries, const Bank& bank,
                              float* distances, int64_t* indices);

}  // namespace mmad_fast
