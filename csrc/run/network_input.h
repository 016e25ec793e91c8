// Between a scan's pixels and the network's grids.
#pragma once

#include <cstdint>

#include "bicubic_resizing/op.h"

namespace mmad_fast {

// Pixels of a border that makes a scan square.
struct Padding {
  int64_t top, bottom, left, right;
};

// For side max(height, width), an odd remainder at the bottom or right.
Padding square_padding(int64_t height, int64_t width);

// target (size, size, 3): rgb (height, width, 3) with its border, of the outermost pixels repeated
// or of zeros, resized by resize_image.
void resize_padded_rgb(const uint8_t* rgb, int64_t height, int64_t width, const Padding& padding,
                       bool repeats_edge, int64_t size, uint8_t* target,
                       ResizingFilter filter = ResizingFilter::kBicubic);

// image (3, num_pixels): (rgb / 255 - mean) / std of rgb (num_pixels, 3), per channel.
void normalise_rgb(const uint8_t* rgb, int64_t num_pixels, const double* mean, const double* std,
                   float* image);

// grid (size, size, 3): of xyz (height, width, 3) with its border the pixels nearest to the grid's,
// as torch's interpolate(mode="nearest") takes them; zeros in the border and where states (height,
// width) has no foreground or, without states, where a coordinate is zero.
void resize_padded_xyz(const float* xyz, const uint8_t* states, int64_t height, int64_t width,
                       const Padding& padding, int64_t size, float* grid);

}  // namespace mmad_fast
