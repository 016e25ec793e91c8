// Pictures of a scan's geometry for networks that read RGB, and the object they are of. As TRD
// prepares its depth and its normals.
#pragma once

#include <cstdint>

#include "run/network_input.h"

namespace mmad_fast {

// is_object (height, width): 1 where xyz (height, width, 3) is measured, which a z of 0 says that
// it is not, and further than plane_removal metres off the plane through the scan's corners; else
// 0. Its closing is taken then, see close_mask. Returns whether there is such a plane; without it
// what is measured is the object.
//
// A corner is the mean of what is measured of its 3 x 3 pixels, inside the padding. The plane goes
// through the top ones and the bottom left one; where one of these has no measurement the bottom
// right one takes its place. There is none where two have none, or where the three lie on a line.
bool mark_object(const float* xyz, int64_t height, int64_t width, const Padding& padding,
                 double plane_removal, uint8_t* is_object);

// mask (height, width) of 0 and 1 dilated, then eroded, by 7 x 7 pixels, of which those beyond the
// border decide nothing.
void close_mask(uint8_t* mask, int64_t height, int64_t width);

// depth (height, width): z of the object's measured points of xyz (height, width, 3), from low at
// the nearest to low + span at the farthest, or low where all are equally far; 0 elsewhere. Pixels
// that are 0 then, be they holes or not, get the mean of what is not 0 among their neighbours, in
// two rounds.
void scale_depth(const float* xyz, const uint8_t* is_object, int64_t height, int64_t width,
                 float low, float span, float* depth);

// picture (height, width, 3) of depth (height, width): (n + 1) / 2 of its normals n by an
// unnormalised Sobel filter of sobel_size (3, 5 or 7) pixels, which mirrors at the border; 0 off
// the object.
void sobel_normals(const float* depth, const uint8_t* is_object, int64_t height, int64_t width,
                   int sobel_size, float* picture);

// picture (3, size, size), a network's input: image (height, width, 3) resized bilinearly with
// aligned pixel centres, then times scale plus shift, of each channel.
void stretch_picture(const float* image, int64_t height, int64_t width, const float* scale,
                     const float* shift, int64_t size, float* picture);

}  // namespace mmad_fast
