// Greedy k-centre selection: rows that cover all others evenly.
#pragma once

#include <cstdint>
#include <functional>

namespace mmad_fast {

// How a selection was made.
struct SelectionStatistics {
  int64_t num_selected = 0;
  int64_t phases = 0;
  int64_t bounded_pairs = 0;   // of a row and a selected row: excluded, or not, by a matrix product
  int64_t stepped_pairs = 0;   // by a step over the active rows
  int64_t measured_pairs = 0;  // those that neither excluded
};

// What rows are projected to where `rank` > 0: mean (width,) and basis (width x rank, row-major,
// orthonormal columns, those with the largest variance first).
struct SelectionProjection {
  const double* mean = nullptr;
  const double* basis = nullptr;
  int64_t rank = 0;
};

// Writes up to num_samples indices of rows (num_rows x width, row-major): `start`, then each time
// the row with the largest distance to its nearest selected row, of equals the lowest. Distances
// are those of float64 arithmetic, rounded to float32. Ends where all of them are 0. `report` is
// called on the calling thread with the number of rows selected so far, some times a second; what
// it throws ends the selection. num_rows, width and num_samples are at least 1.
SelectionStatistics k_center_greedy(const float* rows, int64_t num_rows, int64_t width,
                                    const SelectionProjection& projection, int64_t start,
                                    int64_t num_samples, int64_t* indices,
                                    const std::function<void(int64_t)>& report);

}  // namespace mmad_fast
