// From a scan to what the networks read.
#pragma once

#include "artifact.h"
#include "scan.h"

namespace mmad_fast_infer {

// The scan with its background removed, square, resized and normalised. A scan without foreground
// gives 0 points.
PreparedScan prepare(const Scan& scan, const Recipe& recipe, int64_t rgb_size, int64_t grid_size);

}  // namespace mmad_fast_infer
