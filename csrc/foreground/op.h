// Foreground of an organised XYZ scan: the background plane's pixels and stray components go.
#pragma once

#include <cstdint>

namespace mmad_fast {

// What a pixel of a scan is. The values are part of the Python interface.
constexpr uint8_t kPixelMissing = 0;     // at least one coordinate is zero: no measurement
constexpr uint8_t kPixelForeground = 1;  // measured, kept
constexpr uint8_t kPixelRemoved = 2;     // background plane, or not of the largest component

// States of xyz (num_pixels, 3) float32 metres. `plane` (4,) holds a, b, c, d of ax + by + cz + d =
// 0 with a unit normal; a pixel strictly nearer than removal_distance to it is kPixelRemoved,
// whether measured or not, as published. plane == nullptr: no plane. Returns the number of
// foreground pixels.
int64_t mark_pixels(const float* xyz, int64_t num_pixels, const double* plane,
                    double removal_distance, uint8_t* states);

// DBSCAN labels (num_points,) of points (num_points, 3) float32: -1 is noise; clusters are numbered
// by their lowest core point; a border point that several clusters reach goes to the lowest label.
// A point is core with min_points points (itself included) at a distance <= radius. Throws
// std::invalid_argument where the extent exceeds 2^19 radii.
void density_clusters(const float* points, int64_t num_points, double radius, int64_t min_points,
                      int32_t* labels);

// Clusters the foreground pixels as above and keeps those with the most frequent label, noise being
// a label too, ties to the lowest; the others become kPixelRemoved. Returns the number kept.
int64_t keep_largest_cluster(const float* xyz, int64_t num_pixels, double radius,
                             int64_t min_points, uint8_t* states);

}  // namespace mmad_fast
