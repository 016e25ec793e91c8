// The direction of the smallest eigenvalue of a covariance, with the sign that Open3D gives it.
//
// Eberly, "A Robust Eigensolver for 3 x 3 Symmetric Matrices": eigenvalues by the trigonometric
// solution of the cubic, the eigenvector of the one that stands alone as a cross product of two
// rows, the middle one in the plane across it. float64, branches instead of tables; the cosine of a
// third of an angle by Newton's method, so that no library's rounding is in the result.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace mmad_fast {

// The entries of a symmetric 3 x 3 matrix on and above its diagonal.
struct SymmetricMatrix {
  double xx, xy, xz, yy, yz, zz;
};

struct Direction {
  double x, y, z;
};

namespace detail {

MMAD_FAST_HOST_DEVICE inline Direction cross(const Direction& a, const Direction& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

MMAD_FAST_HOST_DEVICE inline double dot(const Direction& a, const Direction& b) {
  return (a.x * b.x + a.y * b.y) + a.z * b.z;
}

MMAD_FAST_HOST_DEVICE inline Direction scaled(const Direction& a, double factor) {
  return {a.x * factor, a.y * factor, a.z * factor};
}

// cos(acos(cosine) / 3) for a cosine in [0, 1]: the root of 4 c^3 - 3 c = cosine in [0.866, 1].
MMAD_FAST_HOST_DEVICE inline double third_of_angle(double cosine) {
  double c = 0.8660254037844386 + cosine * (0.15893 - 0.0249554037844386 * cosine);
  for (int step = 0; step < 3; ++step) {
    const double squared = c * c;
    c -= (c * (4 * squared - 3) - cosine) / (12 * squared - 3);
  }
  return c < 1 ? c : 1;
}

// The longest cross product of two rows of A - value I, of unit length.
MMAD_FAST_HOST_DEVICE inline Direction lone_eigenvector(const SymmetricMatrix& a, double value) {
  const Direction rows[3] = {
      {a.xx - value, a.xy, a.xz}, {a.xy, a.yy - value, a.yz}, {a.xz, a.yz, a.zz - value}};
  Direction longest = cross(rows[0], rows[1]);
  double squared = dot(longest, longest);
  for (int first = 0; first < 2; ++first) {
    const Direction other = cross(rows[first], rows[2]);
    const double other_squared = dot(other, other);
    if (other_squared > squared) {
      longest = other;
      squared = other_squared;
    }
  }
  const double length = std::sqrt(squared);
  return {longest.x / length, longest.y / length, longest.z / length};
}

// The eigenvector across `first` of a value: in a basis (u, v) of that plane, it is across the
// larger row of the 2 x 2 matrix A - value I. The larger entry of the row gives the sign.
MMAD_FAST_HOST_DEVICE inline Direction eigenvector_across(const SymmetricMatrix& a,
                                                          const Direction& first, double value) {
  Direction u;
  if (std::abs(first.x) > std::abs(first.y)) {
    const double length = std::sqrt(first.x * first.x + first.z * first.z);
    u = {-first.z / length, 0, first.x / length};
  } else {
    const double length = std::sqrt(first.y * first.y + first.z * first.z);
    u = {0, first.z / length, -first.y / length};
  }
  const Direction v = cross(first, u);
  const auto times_a = [&a](const Direction& d) {
    return Direction{a.xx * d.x + a.xy * d.y + a.xz * d.z, a.xy * d.x + a.yy * d.y + a.yz * d.z,
                     a.xz * d.x + a.yz * d.y + a.zz * d.z};
  };
  const Direction au = times_a(u), av = times_a(v);
  const double m00 = dot(u, au) - value, m01 = dot(u, av), m11 = dot(v, av) - value;
  const bool takes_first = std::abs(m00) >= std::abs(m11);
  const double diagonal = takes_first ? m00 : m11;
  if (diagonal == 0 && m01 == 0) return u;
  const bool by_diagonal = std::abs(diagonal) >= std::abs(m01);
  const double ratio = by_diagonal ? m01 / diagonal : diagonal / m01;
  const double larger = 1 / std::sqrt(1 + ratio * ratio), smaller = ratio * larger;
  const double of_diagonal = by_diagonal ? larger : smaller;
  const double of_other = by_diagonal ? smaller : larger;
  const double along_u = takes_first ? of_other : of_diagonal;
  const double along_v = takes_first ? of_diagonal : of_other;
  return {along_u * u.x - along_v * v.x, along_u * u.y - along_v * v.y,
          along_u * u.z - along_v * v.z};
}

}  // namespace detail

// Of unit length; (0, 0, 1) where the matrix is 0, not positive, or so close to a multiple of the
// identity that its directions are lost to rounding.
MMAD_FAST_HOST_DEVICE inline Direction smallest_direction(const SymmetricMatrix& matrix) {
  constexpr double kRootOfThree = 1.7320508075688772;
  const double entries[6] = {matrix.xx, matrix.xy, matrix.xz, matrix.yy, matrix.yz, matrix.zz};
  double largest = entries[0];
  for (const double entry : entries) largest = entry > largest ? entry : largest;
  if (!(largest > 0)) return {0, 0, 1};
  const SymmetricMatrix a = {matrix.xx / largest, matrix.xy / largest, matrix.xz / largest,
                             matrix.yy / largest, matrix.yz / largest, matrix.zz / largest};
  const double off_diagonal = (a.xy * a.xy + a.xz * a.xz) + a.yz * a.yz;
  if (!(off_diagonal > 0)) {
    if (a.zz <= a.xx && a.zz <= a.yy) return {0, 0, 1};
    return a.yy <= a.xx ? Direction{0, 1, 0} : Direction{1, 0, 0};
  }
  const double mean = ((a.xx + a.yy) + a.zz) / 3;
  const double x = a.xx - mean, y = a.yy - mean, z = a.zz - mean;
  const double spread = std::sqrt(((x * x + y * y + z * z) + 2 * off_diagonal) / 6);
  const double determinant = (x * (y * z - a.yz * a.yz) - a.xy * (a.xy * z - a.yz * a.xz)) +
                             a.xz * (a.xy * a.yz - y * a.xz);
  double half = determinant / (spread * spread * spread) * 0.5;
  half = half < -1 ? -1 : half > 1 ? 1 : half;
  const bool largest_is_alone = half >= 0;
  const double cosine = detail::third_of_angle(largest_is_alone ? half : -half);
  const double sine = std::sqrt((1 - cosine) * (1 + cosine));
  Direction normal;
  if (largest_is_alone) {
    const Direction lone = detail::lone_eigenvector(a, mean + spread * (2 * cosine));
    const double middle = mean + spread * (kRootOfThree * sine - cosine);
    normal = detail::cross(detail::eigenvector_across(a, lone, middle), lone);
  } else {
    normal = detail::lone_eigenvector(a, mean - spread * (2 * cosine));
  }
  const double squared = detail::dot(normal, normal);
  return squared > 0.5 && squared < 2 ? normal : Direction{0, 0, 1};
}

}  // namespace mmad_fast
