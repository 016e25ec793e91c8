// Rows of a sparse matrix: how a pixel's feature is combined from a few tokens or point groups.
#pragma once

#include <cstdint>
#include <vector>

#include "pixel_mapping/op.h"

namespace mmad_fast_infer {

// Row p is the sum of values[k] * feature[columns[k]] for offsets[p] <= k < offsets[p + 1].
struct SparseRows {
  std::vector<int64_t> offsets;
  std::vector<int32_t> columns;
  std::vector<float> values;

  int64_t num_rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
  mmad_fast::SparseRowsView view() const {
    return {offsets.data(), columns.data(), values.data(), num_rows()};
  }
  // The given rows, in the given order.
  SparseRows select(const std::vector<int64_t>& rows) const;
};

// Bilinear interpolation of a token grid at pixels of an output_size x output_size grid.
SparseRows bilinear_rows(const std::vector<int64_t>& pixel_indices, int64_t token_grid,
                         int64_t output_size);

}  // namespace mmad_fast_infer
