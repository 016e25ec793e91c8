// Short weighted sums of tokens: how a pixel or patch gets its feature.
#pragma once

#include <cstdint>
#include <vector>

namespace mmad_fast {

// Compressed rows over tokens: pixel p is the sum of values[k] * feature[columns[k]] for
// offsets[p] <= k < offsets[p + 1].
struct SparseRowsView {
  const int64_t* offsets;
  const int32_t* columns;
  const float* values;
  int64_t num_rows;
};

// Rows whose number of entries is only known when they are made.
struct SparseRows {
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> columns;
  std::vector<float> values;

  int64_t num_rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
  SparseRowsView view() const {
    return {offsets.data(), columns.data(), values.data(), num_rows()};
  }
};

// The listed rows (count,), in that order.
SparseRows select_rows(const SparseRowsView& rows, const int64_t* chosen, int64_t count);

// dense (num_rows x width) = rows * features (num_tokens x width), both row-major; the terms of a
// sum are added in the order of the row.
void apply_sparse_rows(const SparseRowsView& rows, const float* features, int64_t width,
                       float* dense);

}  // namespace mmad_fast
