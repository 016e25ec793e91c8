// Short weighted sums of tokens: how a pixel or patch gets its feature.
#pragma once

#include <cstdint>

namespace mmad_fast {

// Compressed rows over tokens: pixel p is the sum of values[k] * feature[columns[k]] for
// offsets[p] <= k < offsets[p + 1].
struct SparseRowsView {
  const int64_t* offsets;
  const int32_t* columns;
  const float* values;
  int64_t num_rows;
};

// dense (num_rows x width) = rows * features (num_tokens x width), both row-major; the terms of a
// sum are added in the order of the row.
void apply_sparse_rows(const SparseRowsView& rows, const float* features, int64_t width,
                       float* dense);

}  // namespace mmad_fast
