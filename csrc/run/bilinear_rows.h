// Bilinear interpolation of a token grid, as sparse rows.
#pragma once

#include <cstdint>

#include "common/sparse_rows.h"

namespace mmad_fast {

// How each pixel (num_pixels,), row-major on the output_size x output_size grid, is combined from
// the tokens of a square grid: 1 to 4 entries that sum to 1, without weights of exactly 0. As torch
// interpolates with mode="bilinear", align_corners=False.
SparseRows bilinear_rows(const int64_t* pixel_indices, int64_t num_pixels, int64_t token_grid,
                         int64_t output_size);

}  // namespace mmad_fast
