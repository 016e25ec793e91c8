// From the discrepancies of pixels to the anomaly map.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mmad_fast {

// Two discrepancies (count,) of each pixel as one: aggregation "product", "sum" or "max", or
// "psi_2d" and "psi_3d", which take the first and the second as it is and do not read the other.
void aggregate(const std::string& aggregation, const float* psi_2d, const float* psi_3d,
               int64_t count, float* combined);

// The pixels whose discrepancy is computed where it is not computed at all of them.
struct RepresentativePixels {
  std::vector<int64_t> positions;  // (R) into the pixels: of each block its representative
  std::vector<int64_t> number;     // (P): which of the R stands for the pixel
};

// A block of stride x stride is represented by that of the given pixels (num_pixels,), ascending
// and row-major on the grid, which is nearest to the block's centre, of equals by the first.
RepresentativePixels representative_pixels(const int64_t* pixel_indices, int64_t num_pixels,
                                           int64_t grid_size, int64_t stride);

// Smooths a map (side, side) in place: smoothing "boxes53", zero-padded box means of side 5, five
// times, and 7, three times (variance 22); or "sigma4", one Gaussian of sigma 4 cut at 16 pixels.
// Pixels out of the filters' reach of any non-zero pixel are exactly 0: sums are made of direct
// additions, since what follows averages the non-zero pixels.
void smooth_map(const std::string& smoothing, int64_t side, float* map);

// The mean over the non-zero values (count,), 0 if there is none.
double mean_of_nonzero(const float* values, int64_t count);

}  // namespace mmad_fast
