// Surface normals of points that lie on a grid of pixels.
#pragma once

#include <cstdint>

namespace mmad_fast {

// smoothed and normals (side, side, 3) of organised points xyz (side, side, 3), whose z of 0 says
// that there is none; zeros there.
//
// The points are averaged by a Gaussian of sigma pixels, cut at three of them, over those that
// there are: a plane stays a plane, also at its rim. sigma 0 averages nothing. A unit normal stands
// upright on the differences to the smoothed neighbours, of two where there are, else of one, and
// points towards the camera in the origin; it is (0, 0, -1) where they span no plane.
void organised_normals(const float* xyz, int64_t side, double sigma, float* smoothed,
                       float* normals);

}  // namespace mmad_fast
