// Holes of a depth image get the mean of what lies around them.
#pragma once

#include <cstdint>

namespace mmad_fast {

// Rows top..bottom - 1 and columns left..right - 1.
struct PixelBox {
  int64_t top, bottom, left, right;
};

// In each of some rounds a pixel of z (height, width) in the box that is 0 gets the mean of what is
// not 0 among its neighbours before the round, of which a pixel has eight but at the border.
void fill_holes(float* z, int64_t height, int64_t width, const PixelBox& box, int num_rounds);

}  // namespace mmad_fast
