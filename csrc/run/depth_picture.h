// The depth of a scan as a picture, and which of its pixels are the object.
#pragma once

#include <cstdint>

namespace mmad_fast {

struct DepthPicture {
  int64_t num_pixels;  // of the object, at the scan's resolution
  bool has_plane;      // the background's depth is known
};

// The depth of xyz (height, width, 3), both at least 2:
// 1. Holes, depths of 0, are filled: in each of three rounds a hole gets the mean of what is not 0
//    among its eight neighbours before the round. Those of the first row and column stay.
// 2. The background's depth is bilinear between the means of what is not 0 among the 2 x 2 pixels
// of
//    each corner. A corner without any continues the plane of the three others; of two or more of
//    them there is no background.
// 3. The object is where the depth is not 0 and more than plane_removal metres off the
// background's. is_object (height, width): 1 there, else 0. picture (size, size): (depth - mean of
// the object's depth) in centimetres, 0 off the object, stretched bilinearly as torch's
// interpolate(mode="bilinear", align_corners=False). foreground (size, size): 1 where a pixel of
// the object has a share in the picture's, else 0.
DepthPicture draw_depth(const float* xyz, int64_t height, int64_t width, double plane_removal,
                        int64_t size, float* picture, uint8_t* foreground, uint8_t* is_object);

}  // namespace mmad_fast
