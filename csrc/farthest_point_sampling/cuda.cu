// Farthest point sampling on a GPU: every sample waits for the one before, so what counts is the
// length of that chain: one barrier per sample, everything else inside warps.
//
// Two algorithms, both with the indices of plain float32:
//
// sample_in_registers (few points): one block; a thread holds its points and their squared
// distances to the chosen set in registers and takes all of them into account at every sample.
//
// sample_leaves (more points): exact pruning. A leaf is 32 consecutive points, one per lane of the
// warp that owns it; depth scans are row-major, so consecutive points are neighbours. Consecutive
// leaves form a group, of one leaf as long as there are enough lanes. Group g belongs to lane
// g / W of warp g mod W, of W warps: neighbouring groups lie on different warps, since a sample
// changes neighbouring ones. The lane keeps in registers the group's box and its candidate, the
// point that is farthest from the chosen set, with its coordinates. Per sample
//   1. each lane tests whether its box is nearer to the sample than its candidate to the chosen
//      set; a vote lists the groups in question, and of groups with several leaves each leaf's box
//      is tested in the same way;
//   2. the warp lowers the distances of the leaves in question, one point per lane;
//   3. the best candidate of the warp goes to a slot; after a barrier every warp reads all slots
//      and finds the same winner. Two sets of slots in turn: one barrier per sample suffices.
// It runs as one block of 32 warps (kBlocks == 1), or on sm_90 and later as a cluster of 8 blocks
// of 16 warps, which write to each other's slots (distributed shared memory), if there is room for
// one: a part of a chip (MIG) may have too few multiprocessors.
//
// Memory: points are read in place. Slots lie in shared memory; the boxes and candidates of the
// leaves (where groups have several) and the distances do too if they fit, else in the workspace.
//
// Of equal distances the lowest index wins. Distances are not negative, so their bits order like
// unsigned integers, and a candidate is the pair (bits of the distance, ~index), the largest being
// the one wanted; (0, 0) is none. A pair instead of one 64-bit key: warps can find 32-bit maxima
// in one instruction from sm_80 on. Points that may not be chosen have distance -1.
//
// float32, (dx*dx + dy*dy) + dz*dz, each operation rounded, nothing accumulated.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "common/cuda_check.h"
#include "farthest_point_sampling/op.h"

namespace mmad_fast {
namespace cuda {
namespace {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr double kNearOriginSquared = 1e-3;

constexpr int kMaxThreadsInRegisters = 512;
constexpr int kThreadsOfBlock = 1024;
constexpr int kBlocksOfCluster = 8;  // the most that is portable
constexpr int kThreadsOfClusterBlock = 512;

// The point of some set that is farthest from the chosen ones.
struct Candidate {
  uint32_t distance;        // bits of the squared distance
  uint32_t inverted_index;  // ~index, or 0: the set has no candidate
};

struct Position {
  float x, y, z;
};

__device__ __forceinline__ bool is_better(const Candidate& a, const Candidate& b) {
  return a.distance > b.distance ||
         (a.distance == b.distance && a.inverted_index > b.inverted_index);
}

// The candidate of a point: none if its distance is -1.
__device__ __forceinline__ Candidate candidate_of(float squared_distance, uint32_t index) {
  if (!(squared_distance >= 0.0f)) return {0, 0};
  return {__float_as_uint(squared_distance), ~index};
}

__device__ __forceinline__ uint32_t warp_max(uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, value);
#else
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, value, offset);
    value = value > other ? value : other;
  }
  return value;
#endif
}

// The best candidate of a warp's lanes, in all of them.
__device__ __forceinline__ Candidate warp_best(const Candidate& mine) {
  const uint32_t largest = warp_max(mine.distance);
  return {largest, warp_max(mine.distance == largest ? mine.inverted_index : 0)};
}

__device__ __forceinline__ Position position_of(const float* __restrict__ points, uint32_t index) {
  const float* point = points + 3 * static_cast<int64_t>(index);
  return {__ldg(point), __ldg(point + 1), __ldg(point + 2)};
}

__device__ __forceinline__ float squared_norm(float x, float y, float z) {
  return __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
}

__device__ __forceinline__ float squared_distance(const Position& a, const Position& b) {
  return squared_norm(__fsub_rn(a.x, b.x), __fsub_rn(a.y, b.y), __fsub_rn(a.z, b.z));
}

// The smaller; a distance that is NaN changes nothing.
__device__ __forceinline__ float lowered(float before, float squared_distance) {
  return squared_distance < before ? squared_distance : before;
}

// The distance of a point before any is chosen: infinite, or -1 if it may not be chosen.
__device__ __forceinline__ float initial_distance(const Position& point, bool skip_near_origin) {
  const bool is_finite =
      fabsf(point.x) < INFINITY && fabsf(point.y) < INFINITY && fabsf(point.z) < INFINITY;
  const bool is_near =
      static_cast<double>(squared_norm(point.x, point.y, point.z)) <= kNearOriginSquared;
  return is_finite && !(skip_near_origin && is_near) ? INFINITY : -1.0f;
}

// The index that a candidate stands for; 0 where there is none.
__device__ __forceinline__ uint32_t index_of(const Candidate& candidate) {
  return candidate.inverted_index == 0 ? 0 : ~candidate.inverted_index;
}

// All candidates are chosen, or there are none: from now on the same index repeats.
__device__ __forceinline__ bool is_exhausted(const Candidate& best) { return best.distance == 0; }

__device__ __forceinline__ void fill(int64_t* indices, int64_t first, int64_t num_samples,
                                     uint32_t index) {
  for (int64_t s = first + threadIdx.x; s < num_samples; s += blockDim.x) indices[s] = index;
}

// One block. Thread t holds the points t, t + blockDim.x, ...
template <int kPointsPerThread>
__global__ void __launch_bounds__(kMaxThreadsInRegisters)
    sample_in_registers(const float* __restrict__ points, uint32_t num_points, int64_t num_samples,
                        uint32_t start_index, bool skip_near_origin,
                        int64_t* __restrict__ indices) {
  __shared__ Candidate slots[2 * kWarpSize];  // per warp, for even and odd samples
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const unsigned num_warps = blockDim.x / kWarpSize;

  Position position[kPointsPerThread];
  float nearest[kPointsPerThread];
#pragma unroll
  for (int i = 0; i < kPointsPerThread; ++i) {
    const uint32_t index = threadIdx.x + i * blockDim.x;
    position[i] = {0.0f, 0.0f, 0.0f};
    nearest[i] = -1.0f;
    if (index < num_points) {
      position[i] = position_of(points, index);
      nearest[i] = initial_distance(position[i], skip_near_origin);
    }
  }
  if (threadIdx.x == 0) indices[0] = start_index;

  uint32_t chosen = start_index;
  for (int64_t s = 1; s < num_samples; ++s) {
    const Position sample = position_of(points, chosen);
    float largest = -1.0f;
    uint32_t farthest = 0;
#pragma unroll
    for (int i = 0; i < kPointsPerThread; ++i) {
      nearest[i] = lowered(nearest[i], squared_distance(position[i], sample));
      if (nearest[i] > largest) {  // of equals the first: indices ascend
        largest = nearest[i];
        farthest = threadIdx.x + i * blockDim.x;
      }
    }
    Candidate* slot = slots + (s % 2) * kWarpSize;
    const Candidate of_warp = warp_best(candidate_of(largest, farthest));
    if (lane == 0) slot[warp] = of_warp;
    __syncthreads();
    const Candidate best = warp_best(lane < num_warps ? slot[lane] : Candidate{0, 0});
    chosen = index_of(best);
    if (is_exhausted(best)) {
      fill(indices, s, num_samples, chosen);
      return;
    }
    if (threadIdx.x == 0) indices[s] = chosen;
  }
}

// Where sample_leaves keeps what, and how it shares the leaves out. Per block there is room for
// groups_per_block * leaves_per_group leaves; groups are numbered within a block lane by lane.
struct LeafLayout {
  uint32_t num_leaves, leaves_per_group, num_groups, groups_per_block;
  bool shares_boxes, shares_distances;  // they lie in shared memory
  int64_t shared_bytes;
};

// A leaf of a group with several: its box, and the point farthest from the chosen ones.
struct alignas(16) Leaf {
  Position low, high;
  Candidate candidate;
};

// What the warps tell each other at a sample.
template <int kNumWarps>
struct Slots {
  uint32_t distance[kNumWarps], inverted_index[kNumWarps];
  float x[kNumWarps], y[kNumWarps], z[kNumWarps];
};

// The squared distance from a point to a box, by the rounded operations of a point's. All of them
// are monotonic, so it never exceeds that of a point in the box.
__device__ __forceinline__ float box_distance(const Position& low, const Position& high,
                                              const Position& point) {
  const auto outside = [](float low, float value, float high) {
    const float below = __fsub_rn(low, value), above = __fsub_rn(value, high);
    const float side = below > above ? below : above;
    return side > 0.0f ? side : 0.0f;
  };
  return squared_norm(outside(low.x, point.x, high.x), outside(low.y, point.y, high.y),
                      outside(low.z, point.z, high.z));
}

// A box with a candidate of distance 0, or with none, is never in question.
__device__ __forceinline__ bool is_in_question(const Position& low, const Position& high,
                                               const Candidate& candidate, const Position& sample) {
  return box_distance(low, high, sample) < __uint_as_float(candidate.distance);
}

// The largest of a warp's values, none of them NaN. Ordered by integers that have their order.
__device__ __forceinline__ float warp_max(float value) {
  constexpr uint32_t kSign = 0x80000000u;
  const uint32_t bits = __float_as_uint(value);
  const uint32_t largest = warp_max((bits & kSign) != 0 ? ~bits : bits | kSign);
  return __uint_as_float((largest & kSign) != 0 ? largest & ~kSign : ~largest);
}

__device__ __forceinline__ float warp_min(float value) { return -warp_max(-value); }

__device__ __forceinline__ Position shuffled(const Position& position, int lane) {
  return {__shfl_sync(kAllLanes, position.x, lane), __shfl_sync(kAllLanes, position.y, lane),
          __shfl_sync(kAllLanes, position.z, lane)};
}

// What the functions below need of the kernel's arguments.
struct Cloud {
  const float* __restrict__ points;
  uint32_t num_points;
  float* nearest;  // (leaves of this block, 32)
};

// The starting state of a leaf, the same in all lanes.
__device__ __forceinline__ Leaf start_leaf(const Cloud& cloud, uint32_t leaf, uint32_t stored_at,
                                           bool skip_near_origin) {
  const unsigned lane = threadIdx.x % kWarpSize;
  const uint32_t index = leaf * kWarpSize + lane;
  Position low = {INFINITY, INFINITY, INFINITY}, high = {-INFINITY, -INFINITY, -INFINITY};
  float distance = -1.0f;
  if (index < cloud.num_points) {
    const Position point = position_of(cloud.points, index);
    distance = initial_distance(point, skip_near_origin);
    if (distance >= 0.0f) low = high = point;
  }
  cloud.nearest[static_cast<int64_t>(stored_at) * kWarpSize + lane] = distance;
  Leaf result;
  result.low = {warp_min(low.x), warp_min(low.y), warp_min(low.z)};
  result.high = {warp_max(high.x), warp_max(high.y), warp_max(high.z)};
  result.candidate = warp_best(candidate_of(distance, index));
  return result;
}

// Leaves that a warp updates: bit i stands for leaf `first + i * step`, stored at
// `stored_first + i * stored_step`.
struct LeafRange {
  uint32_t first, step, stored_first, stored_step;
};

// Takes a sample into account in the leaves whose bits are set; lane i gets the candidate of leaf
// i and its position. Two leaves at a time: their loads overlap.
__device__ __forceinline__ void update_leaves(const Cloud& cloud, uint32_t bits,
                                              const LeafRange& range, const Position& sample,
                                              Candidate& candidate, Position& position) {
  constexpr int kAtOnce = 2;
  const unsigned lane = threadIdx.x % kWarpSize;
  while (bits != 0) {
    int leaf[kAtOnce];
    uint32_t index[kAtOnce];
    float* nearest[kAtOnce];
    Position point[kAtOnce];
    float before[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      leaf[i] = __ffs(static_cast<int>(bits)) - 1;  // -1 when there are no more
      bits &= bits - 1;
      before[i] = -1.0f;
      if (leaf[i] < 0) continue;
      index[i] = (range.first + leaf[i] * range.step) * kWarpSize + lane;
      const uint32_t stored_at = range.stored_first + leaf[i] * range.stored_step;
      nearest[i] = cloud.nearest + static_cast<int64_t>(stored_at) * kWarpSize + lane;
      before[i] = *nearest[i];
      point[i] = position_of(cloud.points, index[i] < cloud.num_points ? index[i] : 0);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (leaf[i] < 0) continue;
      const float after = lowered(before[i], squared_distance(point[i], sample));
      if (after < before[i]) *nearest[i] = after;
      // Lanes ascend with the index, so of equals the first one is wanted.
      const uint32_t distance = after >= 0.0f ? __float_as_uint(after) : 0;
      const uint32_t largest = warp_max(distance);
      const unsigned equal = __ballot_sync(kAllLanes, after >= 0.0f && distance == largest);
      const int farthest = __ffs(static_cast<int>(equal)) - 1;
      const Position found = shuffled(point[i], farthest);
      if (static_cast<int>(lane) == leaf[i]) {
        candidate = {largest, ~(index[i] - lane + static_cast<unsigned>(farthest))};
        position = found;
      }
    }
  }
}

// Takes a sample into account in a group of several leaves; returns its candidate in all lanes.
__device__ __forceinline__ Candidate update_group(const Cloud& cloud, Leaf* leaves,
                                                  const LeafLayout& layout, uint32_t group,
                                                  uint32_t local_group, const Position& sample) {
  const unsigned lane = threadIdx.x % kWarpSize;
  Candidate of_group = {0, 0};
  for (uint32_t first = 0; first < layout.leaves_per_group; first += kWarpSize) {
    const LeafRange range = {group * layout.leaves_per_group + first, 1,
                             local_group * layout.leaves_per_group + first, 1};
    Candidate candidate = {0, 0};
    Position position = {0.0f, 0.0f, 0.0f};
    bool is_hit = false;
    if (first + lane < layout.leaves_per_group && range.first + lane < layout.num_leaves) {
      const Leaf leaf = leaves[range.stored_first + lane];
      candidate = leaf.candidate;
      is_hit = is_in_question(leaf.low, leaf.high, candidate, sample);
    }
    const unsigned hits = __ballot_sync(kAllLanes, is_hit);
    update_leaves(cloud, hits, range, sample, candidate, position);
    if (is_hit) leaves[range.stored_first + lane].candidate = candidate;
    const Candidate best = warp_best(candidate);
    if (is_better(best, of_group)) of_group = best;
  }
  return of_group;
}

template <int kBlocks>
struct Blocks;

template <>
struct Blocks<1> {
  static constexpr int kThreads = kThreadsOfBlock;
  static __device__ __forceinline__ void require() {}
  static __device__ __forceinline__ unsigned rank() { return 0; }
  static __device__ __forceinline__ void barrier() { __syncthreads(); }
  template <typename T>
  static __device__ __forceinline__ T* shared_of(T* pointer, unsigned) {
    return pointer;
  }
};

template <>
struct Blocks<kBlocksOfCluster> {
  static constexpr int kThreads = kThreadsOfClusterBlock;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  static __device__ __forceinline__ void require() {}
  static __device__ __forceinline__ unsigned rank() {
    return cooperative_groups::this_cluster().block_rank();
  }
  static __device__ __forceinline__ void barrier() { cooperative_groups::this_cluster().sync(); }
  template <typename T>
  static __device__ __forceinline__ T* shared_of(T* pointer, unsigned rank) {
    return cooperative_groups::this_cluster().map_shared_rank(pointer, rank);
  }
#else  // never launched
  static __device__ __forceinline__ void require() {
    __trap();
    __builtin_unreachable();
  }
  static __device__ __forceinline__ unsigned rank() { return 0; }
  static __device__ __forceinline__ void barrier() {}
  template <typename T>
  static __device__ __forceinline__ T* shared_of(T* pointer, unsigned) {
    return pointer;
  }
#endif
};

// One block, or one cluster.
template <int kBlocks>
__global__ void __launch_bounds__(Blocks<kBlocks>::kThreads, 1)
    sample_leaves(const float* __restrict__ points, uint32_t num_points, int64_t num_samples,
                  uint32_t start_index, bool skip_near_origin, LeafLayout layout,
                  int64_t* __restrict__ indices, unsigned char* workspace) {
  Blocks<kBlocks>::require();
  constexpr unsigned kWarpsPerBlock = Blocks<kBlocks>::kThreads / kWarpSize;
  constexpr unsigned kNumWarps = kBlocks * kWarpsPerBlock;
  MMAD_FAST_DYNAMIC_SHARED(unsigned char, shared);
  auto* slots = reinterpret_cast<Slots<kNumWarps>*>(shared);  // [2], for even and odd samples
  const unsigned rank = Blocks<kBlocks>::rank();
  const unsigned lane = threadIdx.x % kWarpSize, warp_in_block = threadIdx.x / kWarpSize;
  const unsigned warp = warp_in_block * kBlocks + rank;

  // Boxes first: of two arrays that do not both fit, the one that is read more often.
  const int64_t leaves_per_block =
      static_cast<int64_t>(layout.groups_per_block) * layout.leaves_per_group;
  unsigned char* next_shared = shared + 2 * sizeof(Slots<kNumWarps>);
  unsigned char* next_global =
      workspace + rank * leaves_per_block * (sizeof(Leaf) + kWarpSize * sizeof(float));
  Leaf* leaves = reinterpret_cast<Leaf*>(layout.shares_boxes ? next_shared : next_global);
  if (layout.leaves_per_group > 1) {
    (layout.shares_boxes ? next_shared : next_global) += leaves_per_block * sizeof(Leaf);
  }
  const Cloud cloud = {
      points, num_points,
      reinterpret_cast<float*>(layout.shares_distances ? next_shared : next_global)};

  // The group of this lane.
  Position low = {INFINITY, INFINITY, INFINITY}, high = {-INFINITY, -INFINITY, -INFINITY};
  Candidate candidate = {0, 0};
  Position position = {0.0f, 0.0f, 0.0f};
  for (unsigned owner = 0; owner < kWarpSize; ++owner) {
    const uint32_t group = owner * kNumWarps + warp;
    if (group >= layout.num_groups) break;
    for (uint32_t i = 0; i < layout.leaves_per_group; ++i) {
      const uint32_t index = group * layout.leaves_per_group + i;
      if (index >= layout.num_leaves) break;
      const uint32_t stored_at =
          (owner * kWarpsPerBlock + warp_in_block) * layout.leaves_per_group + i;
      const Leaf leaf = start_leaf(cloud, index, stored_at, skip_near_origin);
      // The lane that reads it later writes it, so that no barrier is needed.
      if (layout.leaves_per_group > 1 && lane == i % kWarpSize) leaves[stored_at] = leaf;
      if (lane == owner) {
        low = {fminf(low.x, leaf.low.x), fminf(low.y, leaf.low.y), fminf(low.z, leaf.low.z)};
        high = {fmaxf(high.x, leaf.high.x), fmaxf(high.y, leaf.high.y), fmaxf(high.z, leaf.high.z)};
        if (is_better(leaf.candidate, candidate)) candidate = leaf.candidate;
      }
    }
  }
  if (candidate.inverted_index != 0) position = position_of(points, index_of(candidate));
  if (rank == 0 && threadIdx.x == 0) indices[0] = start_index;
  Blocks<kBlocks>::barrier();  // no block writes to one that does not run yet

  Position sample = position_of(points, start_index);
  for (int64_t s = 1; s < num_samples; ++s) {
    unsigned hits = __ballot_sync(kAllLanes, is_in_question(low, high, candidate, sample));
    if (layout.leaves_per_group == 1) {
      const LeafRange range = {warp, kNumWarps, warp_in_block, kWarpsPerBlock};
      update_leaves(cloud, hits, range, sample, candidate, position);
    } else {
      for (; hits != 0; hits &= hits - 1) {
        const unsigned owner = __ffs(static_cast<int>(hits)) - 1;
        const Candidate updated = update_group(cloud, leaves, layout, owner * kNumWarps + warp,
                                               owner * kWarpsPerBlock + warp_in_block, sample);
        if (lane == owner) {
          candidate = updated;
          position = position_of(points, index_of(updated));
        }
      }
    }

    const Candidate of_warp = warp_best(candidate);
    const unsigned is_winner =
        __ballot_sync(kAllLanes, candidate.distance == of_warp.distance &&
                                     candidate.inverted_index == of_warp.inverted_index);
    const Position winner_position = shuffled(position, __ffs(static_cast<int>(is_winner)) - 1);
    if (lane < kBlocks) {  // to each block
      Slots<kNumWarps>* target = Blocks<kBlocks>::shared_of(slots + s % 2, lane);
      target->distance[warp] = of_warp.distance;
      target->inverted_index[warp] = of_warp.inverted_index;
      target->x[warp] = winner_position.x;
      target->y[warp] = winner_position.y;
      target->z[warp] = winner_position.z;
    }
    Blocks<kBlocks>::barrier();

    const Slots<kNumWarps>& all = slots[s % 2];
    Candidate mine = {0, 0};
    unsigned slot = lane;
    for (unsigned i = lane; i < kNumWarps; i += kWarpSize) {
      const Candidate other = {all.distance[i], all.inverted_index[i]};
      if (is_better(other, mine)) {
        mine = other;
        slot = i;
      }
    }
    const Candidate best = warp_best(mine);
    if (is_exhausted(best)) {
      if (rank == 0) fill(indices, s, num_samples, index_of(best));
      return;
    }
    const unsigned has_best = __ballot_sync(kAllLanes, mine.inverted_index == best.inverted_index);
    slot = __shfl_sync(kAllLanes, slot, __ffs(static_cast<int>(has_best)) - 1);
    sample = {all.x[slot], all.y[slot], all.z[slot]};
    if (rank == 0 && threadIdx.x == 0) indices[s] = index_of(best);
  }
}

// Which kernel serves how many points. The limits come from the cost model in the op's README.
enum class Kernel { kRegisters2, kRegisters4, kRegisters8, kBlock, kCluster };

Kernel choose_kernel(int64_t num_points, bool has_clusters) {
  if (num_points <= 512) return Kernel::kRegisters2;
  if (num_points <= 2048) return Kernel::kRegisters4;
  if (num_points <= 4096) return Kernel::kRegisters8;
  return has_clusters && num_points > 65536 ? Kernel::kCluster : Kernel::kBlock;
}

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <int kBlocks>
LeafLayout leaf_layout(int64_t num_points, int64_t shared_limit) {
  constexpr int64_t kWarpsPerBlock = Blocks<kBlocks>::kThreads / kWarpSize;
  constexpr int64_t kNumWarps = kBlocks * kWarpsPerBlock;
  const int64_t num_leaves = divided_up(num_points, kWarpSize);
  const int64_t leaves_per_group = divided_up(num_leaves, kNumWarps * kWarpSize);
  const int64_t num_groups = divided_up(num_leaves, leaves_per_group);
  const int64_t groups_per_block = divided_up(num_groups, kNumWarps) * kWarpsPerBlock;
  const int64_t leaves_per_block = groups_per_block * leaves_per_group;

  int64_t shared_bytes = 2 * sizeof(Slots<kNumWarps>);
  const auto fits = [&](int64_t bytes) {
    if (shared_bytes + bytes > shared_limit) return false;
    shared_bytes += bytes;
    return true;
  };
  LeafLayout layout;
  layout.num_leaves = static_cast<uint32_t>(num_leaves);
  layout.leaves_per_group = static_cast<uint32_t>(leaves_per_group);
  layout.num_groups = static_cast<uint32_t>(num_groups);
  layout.groups_per_block = static_cast<uint32_t>(groups_per_block);
  layout.shares_boxes =
      fits(leaves_per_group > 1 ? leaves_per_block * static_cast<int64_t>(sizeof(Leaf)) : 0);
  layout.shares_distances =
      fits(leaves_per_block * kWarpSize * static_cast<int64_t>(sizeof(float)));
  layout.shared_bytes = shared_bytes;
  return layout;
}

template <int kBlocks>
int64_t leaf_workspace(int64_t num_points) {
  const LeafLayout layout = leaf_layout<kBlocks>(num_points, 0);
  return static_cast<int64_t>(kBlocks) * layout.groups_per_block * layout.leaves_per_group *
         static_cast<int64_t>(sizeof(Leaf) + kWarpSize * sizeof(float));
}

struct Arguments {
  const float* points;
  uint32_t num_points;
  int64_t num_samples;
  uint32_t start_index;
  bool skip_near_origin;
  int64_t* indices;
  unsigned char* workspace;
  cudaStream_t stream;
};

template <int kPointsPerThread>
void launch_in_registers(const Arguments& a) {
  const auto num_threads = divided_up(a.num_points, kPointsPerThread * kWarpSize) * kWarpSize;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(static_cast<unsigned>(num_threads));
  config.stream = a.stream;
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, sample_in_registers<kPointsPerThread>, a.points,
                                          a.num_points, a.num_samples, a.start_index,
                                          a.skip_near_origin, a.indices));
}

// False, and nothing is launched: there is no room for the cluster.
template <int kBlocks>
bool launch_on_leaves(const Arguments& a, int64_t shared_limit) {
  const LeafLayout layout = leaf_layout<kBlocks>(a.num_points, shared_limit);
  // The limit, not what this launch needs: another thread may be launching for another cloud.
  MMAD_FAST_CHECK_CUDA(cudaFuncSetAttribute(sample_leaves<kBlocks>,
                                            cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_limit)));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = kBlocks;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(Blocks<kBlocks>::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(layout.shared_bytes);
  config.attrs = &cluster;
  config.numAttrs = kBlocks > 1 ? 1 : 0;
  if (kBlocks > 1) {
    int num_clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&num_clusters, sample_leaves<kBlocks>, &config) !=
        cudaSuccess) {
      cudaGetLastError();  // the next call is not to report this error again
      return false;
    }
    if (num_clusters == 0) return false;
  }
  config.stream = a.stream;
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&config, sample_leaves<kBlocks>, a.points, a.num_points,
                                          a.num_samples, a.start_index, a.skip_near_origin, layout,
                                          a.indices, a.workspace));
  return true;
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  MMAD_FAST_CHECK_CUDA(cudaGetDevice(&device));
  MMAD_FAST_CHECK_CUDA(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

}  // namespace

int64_t farthest_point_sampling_workspace(int64_t num_points) {
  int64_t bytes = 0;
  for (const bool has_clusters : {false, true}) {
    const Kernel kernel = choose_kernel(num_points, has_clusters);
    if (kernel == Kernel::kBlock) bytes = std::max(bytes, leaf_workspace<1>(num_points));
    if (kernel == Kernel::kCluster) {
      bytes = std::max(bytes, leaf_workspace<kBlocksOfCluster>(num_points));
    }
  }
  return bytes;
}

void farthest_point_sampling(const float* points, int64_t num_points, int64_t num_samples,
                             int64_t start_index, bool skip_near_origin, int64_t* indices,
                             void* workspace, void* stream) {
  if (num_points < 1 || num_samples < 1) return;
  const int64_t start = std::min(std::max<int64_t>(start_index, 0), num_points - 1);
  const Arguments arguments = {points,
                               static_cast<uint32_t>(num_points),
                               num_samples,
                               static_cast<uint32_t>(start),
                               skip_near_origin,
                               indices,
                               static_cast<unsigned char*>(workspace),
                               static_cast<cudaStream_t>(stream)};
  const int64_t shared_limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const bool has_clusters = device_attribute(cudaDevAttrClusterLaunch) != 0;
  switch (choose_kernel(num_points, has_clusters)) {
    case Kernel::kRegisters2:
      return launch_in_registers<2>(arguments);
    case Kernel::kRegisters4:
      return launch_in_registers<4>(arguments);
    case Kernel::kRegisters8:
      return launch_in_registers<8>(arguments);
    case Kernel::kCluster:
      if (launch_on_leaves<kBlocksOfCluster>(arguments, shared_limit)) return;
      [[fallthrough]];
    case Kernel::kBlock:
      launch_on_leaves<1>(arguments, shared_limit);
  }
}

}  // namespace cuda
}  // namespace mmad_fast
