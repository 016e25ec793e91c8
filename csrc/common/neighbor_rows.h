// The neighbours of each point of a cloud as the ops read them: rows of a list that may hold more.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace mmad_fast {

// Pointers into the memory of where they are read.
struct NeighborRows {
  const int32_t* indices;          // (N, row_length), ascending by distance
  const float* squared_distances;  // (N, row_length)
  const int32_t* counts;           // (N): how many of a row are neighbours
  int64_t row_length;
  int32_t max_neighbors;  // of those the nearest
  float squared_radius;   // and only those that are nearer; INFINITY: all

  MMAD_FAST_HOST_DEVICE const int32_t* row(int64_t n) const { return indices + n * row_length; }

  MMAD_FAST_HOST_DEVICE const float* squared_row(int64_t n) const {
    return squared_distances + n * row_length;
  }

  MMAD_FAST_HOST_DEVICE int count(int64_t n) const {
    const int most = counts[n] < max_neighbors ? counts[n] : max_neighbors;
    if (squared_radius == INFINITY) return most;
    const float* squared = squared_row(n);
    int low = 0, high = most;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (squared[middle] < squared_radius) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

}  // namespace mmad_fast
