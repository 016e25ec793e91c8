// Greedy k-centre selection: rows that cover all others evenly.
#pragma once

#include <cstdint>
#include <functional>

namespace mmad_fast {

// Writes up to num_samples indices of rows (num_rows x width, row-major) and returns their number:
// `start`, then each time the row with the largest distance to its nearest selected row, of equals
// the lowest. Distances are those of float64 arithmetic, rounded to float32. Ends where all of them
// are 0. `report` is called on the calling thread with the number of rows selected so far, some
// times a second; what it throws ends the selection.
// num_rows, width and num_samples are at least 1.
int64_t k_center_greedy(const float* rows, int64_t num_rows, int64_t width, int64_t start,
                        int64_t num_samples, int64_t* indices,
                        const std::function<void(int64_t)>& report);

}  // namespace mmad_fast
