// Antialiased resizing of RGB images.
#pragma once

#include <cstdint>

namespace mmad_fast {

enum class ResizingFilter { kBicubic, kBilinear };

// target (out_height, out_width, 3): source (in_height, in_width, 3) resized by the antialiased
// filter of Pillow, to the bit: width first, 8 bits in between, where a side keeps its length
// untouched.
void resize_image(const uint8_t* source, int64_t in_height, int64_t in_width, int64_t out_height,
                  int64_t out_width, ResizingFilter filter, uint8_t* target);

}  // namespace mmad_fast
