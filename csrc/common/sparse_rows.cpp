#include "common/sparse_rows.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/simd.h"

namespace mmad_fast {
namespace sparse_row_kernels {

// sum += weight * feature
MMAD_FAST_MULTIVERSION void add_weighted(const float* __restrict__ feature, float weight,
                                         int64_t count, float* __restrict__ sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += weight * feature[i];
}

}  // namespace sparse_row_kernels

SparseRows select_rows(const SparseRowsView& rows, const int64_t* chosen, int64_t count) {
  SparseRows selected;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = rows.offsets[chosen[i]], end = rows.offsets[chosen[i] + 1];
    selected.columns.insert(selected.columns.end(), rows.columns + begin, rows.columns + end);
    selected.values.insert(selected.values.end(), rows.values + begin, rows.values + end);
    selected.offsets.push_back(static_cast<int64_t>(selected.columns.size()));
  }
  return selected;
}

void apply_sparse_rows(const SparseRowsView& rows, const float* features, int64_t width,
                       float* dense) {
  parallel_for(rows.num_rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* sum = dense + row * width;
      std::fill_n(sum, width, 0.0f);
      for (int64_t k = rows.offsets[row]; k < rows.offsets[row + 1]; ++k) {
        sparse_row_kernels::add_weighted(features + rows.columns[k] * width, rows.values[k], width,
                                         sum);
      }
    }
  });
}

}  // namespace mmad_fast
