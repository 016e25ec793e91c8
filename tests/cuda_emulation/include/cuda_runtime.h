// The part of CUDA that our kernels use, for the host: stands in front of CUDA's own header and is
// included into every source. How a launch runs is told in runtime.cpp.
//
// Emulated: blocks, warps, clusters; static and dynamic shared memory; barriers, shuffles, votes,
// matches, atomics; launch limits; device memory (which is host memory); streams as far as "done
// before the call returns" goes. Not emulated: timing, caches, weak memory order (between two
// switches of threads memory is sequentially consistent), lockstep of a warp, blocks that wait for
// other blocks outside their cluster, textures, cooperative grids.
//
// Kernels stand in an unnamed namespace (static __shared__ arrays of templates need it). Kernels
// that run in clusters use dynamic shared memory only: there is one copy of the static arrays.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>

#define MMAD_FAST_CUDA_EMULATION 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static
#define __shared__ static __attribute__((section("emulated_shared")))
#define MMAD_FAST_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(cuda_emulation::dynamic_shared())

// Vector types.

#define EMULATED_VECTOR(type, name, alignment2, alignment4)                   \
  struct alignas(alignment2) name##2 { type x, y; };                          \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(alignment4) name##4 { type x, y, z, w; };                    \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATED_VECTOR(float, float, 8, 16)
EMULATED_VECTOR(int, int, 8, 16)
EMULATED_VECTOR(unsigned, uint, 8, 16)
EMULATED_VECTOR(long long, longlong, 16, 16)
EMULATED_VECTOR(unsigned long long, ulonglong, 16, 16)
#undef EMULATED_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Set by the scheduler before a thread goes on.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// What the header needs of runtime.cpp.

namespace pybind11 {
class module_;
}

namespace cuda_emulation {

enum class Reduction { kNone, kCount, kAnd, kOr };
enum class WarpOp { kSync, kShuffle, kBallot, kAny, kAll, kMatchAny };

// Each waits until all threads concerned have come to it. `line` says where in the source it is.
int block_barrier(Reduction reduction, int predicate, int line);
void cluster_barrier(int line);
// `source` is the lane that a shuffle reads.
uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, int source, int line);
int lane();
void before_atomic(const void* address, size_t bytes);
// Looks for races, see races.h.
void note_access(const void* address, size_t bytes, bool is_write, const void* code);
[[noreturn]] void trap(const char* reason);

void* dynamic_shared();
unsigned cluster_rank();
unsigned cluster_size();
void* map_shared_rank(void* address, unsigned rank);

// The order of threads, told in runtime.cpp; the chip, whose limits launches must keep.
void set_schedule(uint32_t seed, bool switches_at_atomics);
void set_compute_capability(int compute_capability);
int compute_capability();
// The most blocks of a cluster that there is room for, as on a part of a chip (MIG). 16 at first.
void set_cluster_limit(int blocks);
// The most dynamic shared memory that a block may ask for.
int shared_limit();
// On at first; a race ends the launch with an exception.
void set_race_detection(bool is_on);
// How often a thread was let run: tells algorithms apart that return the same.
int64_t num_switches();
// All but two of these for Python (controls.cpp).
void bind_controls(pybind11::module_& m);

template <typename T>
uint64_t to_bits(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "32 or 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// A lane outside its segment of `width` reads itself.
inline int source_lane(int wanted, int width) {
  const int segment = lane() / width * width;
  return wanted < segment || wanted >= segment + width ? lane() : wanted;
}

}  // namespace cuda_emulation

// Barriers, votes, shuffles.

inline void __syncthreads(int line = __builtin_LINE()) {
  cuda_emulation::block_barrier(cuda_emulation::Reduction::kNone, 0, line);
}
inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
  return cuda_emulation::block_barrier(cuda_emulation::Reduction::kCount, predicate, line);
}
inline int __syncthreads_and(int predicate, int line = __builtin_LINE()) {
  return cuda_emulation::block_barrier(cuda_emulation::Reduction::kAnd, predicate, line);
}
inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
  return cuda_emulation::block_barrier(cuda_emulation::Reduction::kOr, predicate, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  cuda_emulation::warp_operation(cuda_emulation::WarpOp::kSync, mask, 0, 0, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return static_cast<unsigned>(cuda_emulation::warp_operation(cuda_emulation::WarpOp::kBallot, mask,
                                                              predicate != 0, 0, line));
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return static_cast<int>(
      cuda_emulation::warp_operation(cuda_emulation::WarpOp::kAny, mask, predicate != 0, 0, line));
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return static_cast<int>(
      cuda_emulation::warp_operation(cuda_emulation::WarpOp::kAll, mask, predicate != 0, 0, line));
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return static_cast<unsigned>(cuda_emulation::warp_operation(
      cuda_emulation::WarpOp::kMatchAny, mask, cuda_emulation::to_bits(value), 0, line));
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const int from = cuda_emulation::lane() / width * width + (source & (width - 1));
  return cuda_emulation::from_bits<T>(cuda_emulation::warp_operation(
      cuda_emulation::WarpOp::kShuffle, mask, cuda_emulation::to_bits(value), from, line));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   int line = __builtin_LINE()) {
  const int from =
      cuda_emulation::source_lane(cuda_emulation::lane() + static_cast<int>(delta), width);
  return cuda_emulation::from_bits<T>(cuda_emulation::warp_operation(
      cuda_emulation::WarpOp::kShuffle, mask, cuda_emulation::to_bits(value), from, line));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 int line = __builtin_LINE()) {
  const int from =
      cuda_emulation::source_lane(cuda_emulation::lane() - static_cast<int>(delta), width);
  return cuda_emulation::from_bits<T>(cuda_emulation::warp_operation(
      cuda_emulation::WarpOp::kShuffle, mask, cuda_emulation::to_bits(value), from, line));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  int line = __builtin_LINE()) {
  const int from = cuda_emulation::source_lane(cuda_emulation::lane() ^ lane_mask, width);
  return cuda_emulation::from_bits<T>(cuda_emulation::warp_operation(
      cuda_emulation::WarpOp::kShuffle, mask, cuda_emulation::to_bits(value), from, line));
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { cuda_emulation::trap("__trap()"); }

// Atomics: for the types of CUDA's own, so that others do not compile here either.

#define EMULATED_UNWATCHED inline __attribute__((no_sanitize("thread")))
#define EMULATED_ATOMIC(name, type, result)                   \
  EMULATED_UNWATCHED type name(type* address, type operand) { \
    cuda_emulation::before_atomic(address, sizeof *address);  \
    const type old = *address;                                \
    *address = (result);                                      \
    return old;                                               \
  }
#define EMULATED_INTEGER_ATOMICS(type)                                            \
  EMULATED_ATOMIC(atomicMin, type, operand < old ? operand : old)                 \
  EMULATED_ATOMIC(atomicMax, type, operand > old ? operand : old)                 \
  EMULATED_ATOMIC(atomicExch, type, operand)                                      \
  EMULATED_ATOMIC(atomicOr, type, old | operand)                                  \
  EMULATED_ATOMIC(atomicAnd, type, old& operand)                                  \
  EMULATED_UNWATCHED type atomicCAS(type* address, type expected, type operand) { \
    cuda_emulation::before_atomic(address, sizeof *address);                      \
    const type old = *address;                                                    \
    if (old == expected) *address = operand;                                      \
    return old;                                                                   \
  }
EMULATED_INTEGER_ATOMICS(int)
EMULATED_INTEGER_ATOMICS(unsigned)
EMULATED_INTEGER_ATOMICS(unsigned long long)
EMULATED_ATOMIC(atomicMin, long long, operand < old ? operand : old)
EMULATED_ATOMIC(atomicMax, long long, operand > old ? operand : old)
EMULATED_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + operand))
EMULATED_ATOMIC(atomicAdd, unsigned, old + operand)
EMULATED_ATOMIC(atomicAdd, unsigned long long, old + operand)
EMULATED_ATOMIC(atomicAdd, float, old + operand)
EMULATED_ATOMIC(atomicExch, float, operand)
#undef EMULATED_INTEGER_ATOMICS
#undef EMULATED_ATOMIC
#undef EMULATED_UNWATCHED

// Arithmetic; compiled without contraction, so each operation rounds on its own.

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline unsigned __float_as_uint(float a) {
  return static_cast<unsigned>(cuda_emulation::to_bits(a));
}
inline int __float_as_int(float a) { return static_cast<int>(cuda_emulation::to_bits(a)); }
inline float __uint_as_float(unsigned a) { return cuda_emulation::from_bits<float>(a); }
inline float __int_as_float(int a) {
  return cuda_emulation::from_bits<float>(static_cast<unsigned>(a));
}
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __ffsll(long long a) { return __builtin_ffsll(a); }
inline int __clz(int a) { return a == 0 ? 32 : __builtin_clz(static_cast<unsigned>(a)); }
inline int __clzll(long long a) {
  return a == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(a));
}

#define EMULATED_MIN_MAX(type)                              \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
#undef EMULATED_MIN_MAX
// Of a number and a NaN the number, as on the device.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

// The runtime's calls. All work is done when a call returns.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotSupported = 801,
  cudaErrorInvalidClusterSize = 912,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrClusterLaunch = 120,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore = 0,
  cudaLaunchAttributeClusterDimension = 4,
};
union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
typedef struct EmulatedStream* cudaStream_t;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
inline cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) {
  return cudaMalloc(memory, bytes);
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return cudaFree(memory); }
template <typename T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(memory), bytes);
}
inline cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  if (bytes > 0) std::memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t = nullptr) {
  return cudaMemset(memory, value, bytes);
}
inline cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(target, source, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes,
                                   cudaMemcpyKind kind, cudaStream_t = nullptr) {
  return cudaMemcpy(target, source, bytes, kind);
}

namespace cuda_emulation {

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t max_active_clusters(int* count, const void* kernel, const cudaLaunchConfig_t& config);
// Runs `thread` once per thread. A fault of the kernel (a divergent barrier, a write into a guard
// zone, ...) is no error code but a std::runtime_error: nobody can pass over it.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   const std::function<void()>& thread);

}  // namespace cuda_emulation

template <typename T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
  return cuda_emulation::set_function_attribute(reinterpret_cast<const void*>(kernel), attribute,
                                                value);
}

template <typename T>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, T* kernel,
                                           const cudaLaunchConfig_t* config) {
  return cuda_emulation::max_active_clusters(count, reinterpret_cast<const void*>(kernel), *config);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const auto thread = [kernel](Parameters... values) {
    return [kernel, values...]() { kernel(values...); };
  }(std::forward<Arguments>(arguments)...);
  return cuda_emulation::launch(*config, reinterpret_cast<const void*>(kernel), thread);
}
