// The bins of FPFH that a pair of points with normals falls into. float64, without branches and
// without a library's trigonometric functions: an angle's bin is found by the sides of the bins'
// edges on which it is.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace mmad_fast {

constexpr int kNumBins = 11;
constexpr int kNumFeatures = 3;  // theta, alpha, phi
constexpr int kNumChannels = kNumFeatures * kNumBins;

struct PairBins {
  int theta, alpha, phi;
};

namespace detail {

// Of a cosine: equal parts of [-1, 1].
MMAD_FAST_HOST_DEVICE inline int cosine_bin(double cosine) {
  const double position = kNumBins * (cosine + 1) * 0.5;
  const double low = position > 0 ? position : 0;
  return static_cast<int>(low < kNumBins - 1 ? low : kNumBins - 1);
}

// Of the angle of (x, y) as atan2 has it: equal parts of [-pi, pi], the middle one around 0. Edge k
// is at (2 k + 1) / 11 pi on either side.
MMAD_FAST_HOST_DEVICE inline int angle_bin(double x, double y) {
  const double height = std::abs(y);
  double edges = 0;
  edges += height * 0.9594929736144974 > x * 0.28173255684142967 ? 1.0 : 0.0;
  edges += height * 0.6548607339452851 > x * 0.7557495743542583 ? 1.0 : 0.0;
  edges += height * 0.14231483827328534 > x * 0.9898214418809327 ? 1.0 : 0.0;
  edges += height * -0.4154150130018863 > x * 0.9096319953545184 ? 1.0 : 0.0;
  edges += height * -0.8412535328311813 > x * 0.5406408174555974 ? 1.0 : 0.0;
  return static_cast<int>(kNumBins / 2 + std::copysign(edges, y));
}

}  // namespace detail

// (dx, dy, dz): from the point to its neighbour; n, m: the normals there, of unit length. The
// middle bins where the points are in one place or the source's normal is on the line.
MMAD_FAST_HOST_DEVICE inline PairBins pair_bins(double dx, double dy, double dz, double nx,
                                                double ny, double nz, double mx, double my,
                                                double mz) {
  const double squared_length = (dx * dx + dy * dy) + dz * dz;
  const double along_n = (nx * dx + ny * dy) + nz * dz, along_m = (mx * dx + my * dy) + mz * dz;
  const bool swaps = std::abs(along_n) < std::abs(along_m);
  // The source is the end whose normal is nearer to the line, which leads away from it.
  const double sx = swaps ? mx : nx, sy = swaps ? my : ny, sz = swaps ? mz : nz;
  const double tx = swaps ? nx : mx, ty = swaps ? ny : my, tz = swaps ? nz : mz;
  const double lx = swaps ? -dx : dx, ly = swaps ? -dy : dy, lz = swaps ? -dz : dz;
  const double vx = ly * sz - lz * sy, vy = lz * sx - lx * sz, vz = lx * sy - ly * sx;
  const double squared_v = (vx * vx + vy * vy) + vz * vz;
  const double wx = sy * vz - sz * vy, wy = sz * vx - sx * vz, wz = sx * vy - sy * vx;
  const double along_v = (vx * tx + vy * ty) + vz * tz, along_w = (wx * tx + wy * ty) + wz * tz;
  const double along_s = (sx * tx + sy * ty) + sz * tz;
  const bool is_defined = squared_length > 0 && squared_v > 0;
  const double length = std::sqrt(is_defined ? squared_length : 1);
  const double v_length = std::sqrt(is_defined ? squared_v : 1);
  const double inverse = 1 / (length * v_length);  // one division for two
  const double phi = (swaps ? -along_m : along_n) * (inverse * v_length);
  const double alpha = along_v * (inverse * length);
  return {detail::angle_bin(is_defined ? along_s * v_length : 1, is_defined ? along_w : 0),
          detail::cosine_bin(is_defined ? alpha : 0), detail::cosine_bin(is_defined ? phi : 0)};
}

}  // namespace mmad_fast
