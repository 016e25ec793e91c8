// The plane that a scan's object lies on, found on the image's rim.
#pragma once

#include <array>
#include <optional>

#include "artifact.h"
#include "scan.h"

namespace mmad_fast_infer {

// (a, b, c, d) of ax + by + cz + d = 0 in metres with a unit normal, or nothing where the rim shows
// no plane, which is a normal answer. The same search as mmad_fast/preprocess/background_plane.py,
// with the same random numbers, so it ends at the same plane up to the rounding of its last digits.
std::optional<std::array<double, 4>> find_background_plane(const Scan& scan, const Recipe& recipe);

}  // namespace mmad_fast_infer
