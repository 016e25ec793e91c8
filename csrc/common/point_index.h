// A k-d tree over 3D points for exact nearest-neighbour search.
#pragma once

#include <cstdint>
#include <vector>

namespace mmad_fast {

// A neighbour as one integer: squared distance (float32 bits, which order like integers because it
// is never negative) above the point's index. Smaller means nearer, and of equals the lower index.
using NeighborKey = uint64_t;

inline float neighbor_squared_distance(NeighborKey key) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(key >> 32));
}
inline int64_t neighbor_index(NeighborKey key) { return static_cast<uint32_t>(key); }

class PointIndex {
 public:
  // points (N, 3) row-major, N < 2^32 - 1, finite, with finite squared distances. They are copied.
  PointIndex(const float* points, int64_t num_points);

  // Puts the keys of the k nearest points, ascending, into found[0..k); 1 <= k <= N. `found` is a
  // buffer to use again from query to query; what lies behind the first k is of no meaning.
  void nearest(const float* query, int64_t k, std::vector<NeighborKey>& found) const;

 private:
  struct Node {
    float low[3], high[3];  // the box of its points
    int32_t leaf;           // the leaf's number, or -1
    int32_t right;          // the right child; the left one follows its parent
  };
  struct Search;

  int32_t build(const float* points, uint32_t* begin, uint32_t* end);
  void add_leaf(const float* points, const uint32_t* begin, const uint32_t* end);
  void visit(int32_t node, Search& search) const;

  std::vector<Node> nodes_;
  std::vector<float> leaf_points_;    // per leaf x[32], y[32], z[32]
  std::vector<uint32_t> leaf_index_;  // per leaf the 32 points' indices
};

}  // namespace mmad_fast
