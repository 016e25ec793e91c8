// Grouping on a CUDA device: an exact search, one warp per centre.
//
// A neighbour is one integer, as on the CPU: squared distance (float32 bits, which order like
// integers because it is never negative) above the point's index. Smaller means nearer, and of
// equals the lower index. A point without a finite distance (NaN or infinite coordinates, or a
// square that overflows) counts as infinitely far: it is a neighbour only where there are too few
// others.
//
// 1. find_boxes, one warp per leaf: the bounding box of each leaf of 32 consecutive points. A depth
//    scan comes row by row, so that these are near each other.
// 2. find_neighbors, one warp per centre, whose lanes are 32 boxes or the 32 points of a leaf: all
//    boxes are looked at once, the 32 nearest are kept and their leaves searched, nearest first.
//    Only where the last of them is nearer than the K-th neighbour so far, the boxes are looked at
//    again. What a leaf holds at or below a limit is appended unsorted to a buffer; when that is
//    full, it is cut back to at most 5/4 K + 8 keys, which tightens the limit. A cut finds its
//    threshold by counting keys, first where equal steps of squared distance suggest it (points on
//    a surface), then by halving, which always ends, since no two keys are equal. In the end the K
//    keys are sorted.
//
// Launch: 4 warps per block (2 for K > 512). Shared memory: the warp's buffer of max(256, 2 K
// rounded up to a power of 2) keys of 8 bytes, at most 32 KiB per block. Workspace: low and high
// corners of the boxes as 6 rows of N/32 floats. Warps share nothing and wait for none.
//
// float32 distances by direct differences, (dx*dx + dy*dy) + dz*dz, each operation rounded. Those
// of boxes are computed likewise, and each operation is monotonic: pruning by them loses no
// neighbour.
#include <cmath>
#include <cstdint>

#include "common/cuda_check.h"
#include "knn_grouping/op.h"

namespace mmad_fast {
namespace cuda {
namespace {

using Key = uint64_t;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kLanes = 32;
constexpr int kLeafSize = kLanes;
constexpr int kNumFirstLeaves = kLanes;  // searched in order, one per lane
constexpr int kSmallCapacity = 256;      // keys; room for 5/4 K + 8 and another leaf while K <= 128
constexpr int kWarpsPerBlock = 4;
constexpr int kNumInterpolations = 8;  // then a cut halves
constexpr uint32_t kInfiniteDistance = 0x7f800000u;
constexpr Key kNoKey = ~Key{0};

__device__ __forceinline__ Key key_of(float squared_distance, uint32_t index) {
  // The comparison is false for NaN, too.
  const uint32_t bits =
      squared_distance < INFINITY ? __float_as_uint(squared_distance) : kInfiniteDistance;
  return (static_cast<Key>(bits) << 32) | index;
}

__device__ __forceinline__ float distance_of(Key key) {
  return __uint_as_float(static_cast<uint32_t>(key >> 32));
}

__device__ __forceinline__ float squared_norm(float x, float y, float z) {
  return __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
}

// How far a coordinate is outside an interval; 0 for NaN. An empty interval is infinitely far.
__device__ __forceinline__ float outside(float low, float value, float high) {
  return fmaxf(fmaxf(__fsub_rn(low, value), __fsub_rn(value, high)), 0.0f);
}

// The smallest keys that a warp has met, in shared memory. The members are the same in all lanes,
// and all lanes make the same calls.
struct SmallestKeys {
  Key* const keys;  // [capacity], unsorted until sort()
  const int capacity;
  const int num_wanted;
  const int lane;
  int count = 0;
  Key limit = kNoKey - 1;  // no key above it is wanted

  // One key per lane; kNoKey is none.
  __device__ __forceinline__ void add(Key key) {
    const bool is_wanted = key <= limit;
    const unsigned lanes = __ballot_sync(kAllLanes, is_wanted);
    if (is_wanted) keys[count + __popc(lanes & ((1u << lane) - 1))] = key;
    count += __popc(lanes);
    __syncwarp();
    if (count > capacity - kLanes) cut(num_wanted + num_wanted / 4 + 8);
  }

  __device__ __forceinline__ Key key_at(int at) const { return at < count ? keys[at] : kNoKey; }

  __device__ __forceinline__ int count_up_to(Key threshold) const {
    int sum = 0;
    for (int first = 0; first < count; first += kLanes) {
      sum += __popc(__ballot_sync(kAllLanes, key_at(first + lane) <= threshold));
    }
    return sum;
  }

  __device__ __forceinline__ Key largest() const {
    Key key = 0;
    for (int at = lane; at < count; at += kLanes) key = keys[at] > key ? keys[at] : key;
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const Key other = __shfl_xor_sync(kAllLanes, key, step);
      key = other > key ? other : key;
    }
    return key;
  }

  // Leaves at most `most` keys, num_wanted <= most, and no fewer than num_wanted if there were.
  __device__ __forceinline__ void cut(int most) {
    if (count <= most) return;
    const float target = 0.5f * static_cast<float>(num_wanted + most);
    // low has fewer than num_wanted keys up to it (but for 0 at the start), high has as many or
    // more.
    Key low = 0, high = largest();
    int num_low = 0, num_high = count;
    for (int step = 0; num_high > most; ++step) {
      Key middle = low + (high - low) / 2;
      if (step < kNumInterpolations) {
        const float share = (target - num_low) / static_cast<float>(num_high - num_low);
        const float guess = distance_of(low) + share * (distance_of(high) - distance_of(low));
        middle = key_of(guess, 0xffffffffu);
        middle = middle < low ? low : middle >= high ? high - 1 : middle;
      }
      const int num_middle = count_up_to(middle);
      if (num_middle < num_wanted) {
        low = middle;
        num_low = num_middle;
      } else {
        high = middle;
        num_high = num_middle;
      }
    }
    keep_up_to(high);
  }

  __device__ __forceinline__ void keep_up_to(Key threshold) {
    int num_kept = 0;
    for (int first = 0; first < count; first += kLanes) {
      const Key key = key_at(first + lane);
      const unsigned lanes = __ballot_sync(kAllLanes, key <= threshold);
      __syncwarp();  // the keys have been read that are written over
      if (key <= threshold) keys[num_kept + __popc(lanes & ((1u << lane) - 1))] = key;
      num_kept += __popc(lanes);
    }
    __syncwarp();
    count = num_kept;
    limit = threshold;
  }

  // Leaves the num_wanted smallest, ascending, and kNoKey up to the next power of 2, at least 32.
  __device__ __forceinline__ void sort() {
    cut(num_wanted);
    int size = kLanes;
    while (size < count) size *= 2;
    for (int at = count + lane; at < size; at += kLanes) keys[at] = kNoKey;
    __syncwarp();
    // A bitonic sort whose comparisons all go one way: each merge of two runs compares mirrored
    // places first.
    for (int run = 2; run <= size; run *= 2) {
      for (int stride = run / 2; stride > 0; stride /= 2) {
        const int partner = stride == run / 2 ? run - 1 : stride;
        for (int pair = lane; pair < size / 2; pair += kLanes) {
          const int at = 2 * pair - (pair & (stride - 1));
          const Key here = keys[at], there = keys[at ^ partner];
          if (there < here) {
            keys[at] = there;
            keys[at ^ partner] = here;
          }
        }
        __syncwarp();
      }
    }
  }
};

// The cloud as one warp searches it for the neighbours of one centre.
struct Search {
  const float* const points;  // (N, 3)
  const uint32_t num_points;
  const float* const boxes;  // (6, L): the low corners' x, y, z, then the high ones'
  const uint32_t num_leaves;
  const float x, y, z;
  const int lane;

  // The distance of a leaf's box, which no point in it has less of, above its first point's index.
  __device__ __forceinline__ Key leaf_key(uint32_t leaf) const {
    if (leaf >= num_leaves) return kNoKey;
    const float* box = boxes + leaf;
    const size_t row = num_leaves;
    const float dx = outside(box[0], x, box[3 * row]);
    const float dy = outside(box[row], y, box[4 * row]);
    const float dz = outside(box[2 * row], z, box[5 * row]);
    return key_of(squared_norm(dx, dy, dz), leaf * kLeafSize);
  }

  __device__ __forceinline__ Key point_key(uint32_t index) const {
    if (index >= num_points) return kNoKey;
    const float* point = points + 3 * static_cast<size_t>(index);
    const float dx = __fsub_rn(point[0], x), dy = __fsub_rn(point[1], y);
    return key_of(squared_norm(dx, dy, __fsub_rn(point[2], z)), index);
  }

  // Adds the points of the leaves whose keys the lanes hold, while these are within the limit.
  __device__ __forceinline__ void search_leaves(Key leaf, SmallestKeys& found) const {
    for (unsigned lanes; (lanes = __ballot_sync(kAllLanes, leaf <= found.limit)) != 0;) {
      const int source = __ffs(lanes) - 1;
      const uint32_t first = static_cast<uint32_t>(__shfl_sync(kAllLanes, leaf, source));
      if (lane == source) leaf = kNoKey;
      found.add(point_key(first + lane));
    }
  }

  // The nearest leaves, one per lane, ascending; the keys' memory is free afterwards.
  __device__ __forceinline__ Key nearest_leaves(Key* keys) const {
    SmallestKeys nearest{keys, kSmallCapacity, kNumFirstLeaves, lane};
    for (uint32_t first = 0; first < num_leaves; first += kLanes) {
      nearest.add(leaf_key(first + lane));
    }
    nearest.sort();
    const Key leaf = keys[lane];
    __syncwarp();
    return leaf;
  }

  // Leaves the num_neighbors smallest keys of the cloud, ascending.
  __device__ __forceinline__ void run(Key* keys, int capacity, int num_neighbors) const {
    const Key leaf = nearest_leaves(keys);
    const Key last_leaf = __shfl_sync(kAllLanes, leaf, kNumFirstLeaves - 1);
    SmallestKeys found{keys, capacity, num_neighbors, lane};
    search_leaves(leaf, found);
    if (last_leaf <= found.limit) {
      for (uint32_t first = 0; first < num_leaves; first += kLanes) {
        const Key other = leaf_key(first + lane);
        search_leaves(other > last_leaf ? other : kNoKey, found);
      }
    }
    found.sort();
  }
};

__global__ void __launch_bounds__(kWarpsPerBlock* kLanes)
    find_boxes(const float* __restrict__ points, uint32_t num_points, uint32_t num_leaves,
               float* __restrict__ boxes) {
  const int lane = threadIdx.x % kLanes;
  const uint32_t leaf = blockIdx.x * kWarpsPerBlock + threadIdx.x / kLanes;
  if (leaf >= num_leaves) return;
  const uint32_t index = leaf * kLeafSize + lane;
  float low[3] = {INFINITY, INFINITY, INFINITY};
  float high[3] = {-INFINITY, -INFINITY, -INFINITY};
  if (index < num_points) {
    const float* point = points + 3 * static_cast<size_t>(index);
    // Points that are infinitely far from everything need no box: it would only grow.
    if (fabsf(point[0]) < INFINITY && fabsf(point[1]) < INFINITY && fabsf(point[2]) < INFINITY) {
      for (int axis = 0; axis < 3; ++axis) low[axis] = high[axis] = point[axis];
    }
  }
  for (int axis = 0; axis < 3; ++axis) {
    for (int step = kLanes / 2; step > 0; step /= 2) {
      low[axis] = fminf(low[axis], __shfl_xor_sync(kAllLanes, low[axis], step));
      high[axis] = fmaxf(high[axis], __shfl_xor_sync(kAllLanes, high[axis], step));
    }
    if (lane == axis) {
      boxes[axis * static_cast<size_t>(num_leaves) + leaf] = low[axis];
      boxes[(3 + axis) * static_cast<size_t>(num_leaves) + leaf] = high[axis];
    }
  }
}

__global__ void __launch_bounds__(kWarpsPerBlock* kLanes)
    find_neighbors(const float* __restrict__ points, uint32_t num_points,
                   const float* __restrict__ boxes, uint32_t num_leaves,
                   const int64_t* __restrict__ center_indices, int64_t num_centers,
                   int num_neighbors, int capacity, int64_t* __restrict__ indices,
                   float* __restrict__ groups) {
  MMAD_FAST_DYNAMIC_SHARED(Key, buffers);
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const int64_t g = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kLanes) + warp;
  if (g >= num_centers) return;
  const int64_t last_index = static_cast<int64_t>(num_points) - 1;
  const int64_t given = center_indices[g];
  const int64_t center = given < 0 ? 0 : given > last_index ? last_index : given;
  const float x = points[3 * center], y = points[3 * center + 1], z = points[3 * center + 2];
  Key* const keys = buffers + static_cast<size_t>(warp) * capacity;
  Search{points, num_points, boxes, num_leaves, x, y, z, lane}.run(keys, capacity, num_neighbors);

  for (int k = lane; k < num_neighbors; k += kLanes) {
    const uint32_t neighbor = static_cast<uint32_t>(keys[k]);
    const float* point = points + 3 * static_cast<size_t>(neighbor);
    const int64_t at = g * num_neighbors + k;
    indices[at] = neighbor;
    groups[3 * at] = __fsub_rn(point[0], x);
    groups[3 * at + 1] = __fsub_rn(point[1], y);
    groups[3 * at + 2] = __fsub_rn(point[2], z);
  }
}

// As find_neighbors, for every point as a centre.
__global__ void __launch_bounds__(kWarpsPerBlock* kLanes)
    list_neighbors(const float* __restrict__ points, uint32_t num_points,
                   const float* __restrict__ boxes, uint32_t num_leaves, int num_neighbors,
                   float squared_radius, int capacity, int32_t* __restrict__ indices,
                   float* __restrict__ squared_distances, int32_t* __restrict__ counts) {
  MMAD_FAST_DYNAMIC_SHARED(Key, buffers);
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const uint32_t n = blockIdx.x * (blockDim.x / kLanes) + warp;
  if (n >= num_points) return;
  const float* point = points + 3 * static_cast<size_t>(n);
  Key* const keys = buffers + static_cast<size_t>(warp) * capacity;
  Search{points, num_points, boxes, num_leaves, point[0], point[1], point[2], lane}.run(
      keys, capacity, num_neighbors);

  const size_t row = static_cast<size_t>(n) * num_neighbors;
  int count = 0;
  for (int first = 0; first < num_neighbors; first += kLanes) {
    const int k = first + lane;
    const bool is_there = k < num_neighbors;
    const Key key = is_there ? keys[k] : kNoKey;
    const bool is_inside = is_there && distance_of(key) < squared_radius;
    count += __popc(__ballot_sync(kAllLanes, is_inside));
    if (is_there) {
      indices[row + k] = is_inside ? static_cast<int32_t>(static_cast<uint32_t>(key)) : -1;
      squared_distances[row + k] = is_inside ? distance_of(key) : INFINITY;
    }
  }
  if (lane == 0) counts[n] = count;
}

int64_t ceil_divide(int64_t count, int64_t size) { return (count + size - 1) / size; }

int buffer_capacity(int64_t num_neighbors) {
  int capacity = kSmallCapacity;
  while (capacity < 2 * num_neighbors) capacity *= 2;
  return capacity;
}

cudaLaunchConfig_t launch_config(int64_t num_warps, int warps_per_block, size_t shared_bytes,
                                 void* stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ceil_divide(num_warps, warps_per_block)));
  config.blockDim = dim3(static_cast<unsigned>(warps_per_block * kLanes));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return config;
}

cudaLaunchConfig_t search_config(int64_t num_centers, int capacity, void* stream) {
  const int warps_per_block = capacity <= 1024 ? kWarpsPerBlock : kWarpsPerBlock / 2;
  return launch_config(num_centers, warps_per_block, sizeof(Key) * warps_per_block * capacity,
                       stream);
}

struct Boxes {
  const float* corners;  // (6, L)
  uint32_t num_leaves;
};

Boxes make_boxes(const float* points, int64_t num_points, void* workspace, void* stream) {
  const auto num_leaves = static_cast<uint32_t>(ceil_divide(num_points, kLeafSize));
  float* corners = static_cast<float*>(workspace);
  const cudaLaunchConfig_t per_leaf = launch_config(num_leaves, kWarpsPerBlock, 0, stream);
  MMAD_FAST_CHECK_CUDA(cudaLaunchKernelEx(&per_leaf, find_boxes, points,
                                          static_cast<uint32_t>(num_points), num_leaves, corners));
  return {corners, num_leaves};
}

}  // namespace

int64_t knn_grouping_workspace(int64_t num_points, int64_t, int64_t) {
  return ceil_divide(num_points, kLeafSize) * 6 * static_cast<int64_t>(sizeof(float));
}

void knn_grouping(const float* points, int64_t num_points, const int64_t* center_indices,
                  int64_t num_centers, int64_t num_neighbors, int64_t* indices, float* groups,
                  void* workspace, void* stream) {
  const Boxes boxes = make_boxes(points, num_points, workspace, stream);
  const int capacity = buffer_capacity(num_neighbors);
  const cudaLaunchConfig_t per_center = search_config(num_centers, capacity, stream);
  MMAD_FAST_CHECK_CUDA(
      cudaLaunchKernelEx(&per_center, find_neighbors, points, static_cast<uint32_t>(num_points),
                         boxes.corners, boxes.num_leaves, center_indices, num_centers,
                         static_cast<int>(num_neighbors), capacity, indices, groups));
}

void point_neighbors(const float* points, int64_t num_points, int64_t num_neighbors,
                     float squared_radius, int32_t* indices, float* squared_distances,
                     int32_t* counts, void* workspace, void* stream) {
  const Boxes boxes = make_boxes(points, num_points, workspace, stream);
  const int capacity = buffer_capacity(num_neighbors);
  const cudaLaunchConfig_t per_point = search_config(num_points, capacity, stream);
  MMAD_FAST_CHECK_CUDA(
      cudaLaunchKernelEx(&per_point, list_neighbors, points, static_cast<uint32_t>(num_points),
                         boxes.corners, boxes.num_leaves, static_cast<int>(num_neighbors),
                         squared_radius, capacity, indices, squared_distances, counts));
}

}  // namespace cuda
}  // namespace mmad_fast
