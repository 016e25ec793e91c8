// Where restored feature maps differ in direction from those of a teacher.
#pragma once

#include <cstdint>
#include <vector>

namespace mmad_fast {

// The maps of one level, each (channels, height, width).
struct CosineLevel {
  const float* target;
  const float* restored;
  int64_t channels, height, width;

  int64_t num_pixels() const { return height * width; }
};

// Writes the map (size, size): the distances 1 - cosine of each level's pixels, upsampled
// bilinearly, summed over the levels and smoothed by a Gaussian of sigma pixels, at most
// kMaxSigma; 0 for none. All is NaN where a feature is not finite.
void cosine_maps(const std::vector<CosineLevel>& levels, int64_t size, double sigma,
                 bool align_corners, float* map);

namespace cuda {

// On the current device; pointers into its memory, the workspace of as many bytes as
// cosine_maps_workspace says. The stream is a cudaStream_t. Only what features that are not finite
// reach is NaN.
int64_t cosine_maps_workspace(const std::vector<CosineLevel>& levels, int64_t size);
void cosine_maps(const std::vector<CosineLevel>& levels, int64_t size, double sigma,
                 bool align_corners, float* map, void* workspace, void* stream);

}  // namespace cuda
}  // namespace mmad_fast
