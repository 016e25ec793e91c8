// How an emulated launch runs.
//
// All threads of a cluster (mostly one block) are fibers on one OS thread. A fiber runs until it
// waits: at a barrier of its block or cluster, in a warp operation, and, if the schedule says so,
// before an atomic. Then the schedule draws who goes on. Clusters run one after the other, in an
// order that is drawn, too. Schedule 0 takes blocks, warps and lanes in ascending order; of the
// others the odd ones draw each thread anew, and the even ones stay with a warp until all of it
// waits, so that warps get far ahead of each other. What depends on an order that the kernel does
// not enforce therefore differs between schedules.
//
// Shared memory is filled with NaN bytes before a block begins and when its last thread has ended,
// and stands between guard zones. Faults of a kernel end the launch with an exception that tells
// which thread did what; the other fibers are dropped, they own nothing. Races in shared memory are
// faults under any schedule (races.h).
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "races.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The linker's names for the section of static __shared__ arrays; this keeps it from being empty.
__attribute__((section("emulated_shared"), used)) static char emulated_shared_begin[16];
extern char __start_emulated_shared[] __attribute__((visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((visibility("hidden")));

namespace cuda_emulation {
namespace {

constexpr unsigned char kPoison = 0xff, kGuard = 0xa5;
constexpr size_t kGuardBytes = 4096;
constexpr uint64_t kCanary = 0x5afe57ac5afe57ac;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
// Not a power of two, so that the tops of the stacks fall into different sets of the cache.
constexpr size_t kStackStride = kStackBytes + 17 * 64;

enum class Wait { kNothing, kBlock, kCluster, kWarp, kEnded };

struct Warp;
struct Block;

struct Thread {
  Fiber fiber;
  Block* block;
  Warp* warp;
  uint3 index;
  int lane;
  Wait wait;
  int line;  // of what it waits for
  WarpOp op;
  unsigned mask;
  int source;
  uint64_t value, result;
  LaneClocks clocks;
};

struct Warp {
  Block* block;
  Thread* threads;
  int num_threads;
  unsigned ready;  // lanes
};

// The threads that have come to a barrier.
struct Barrier {
  int arrived, line, predicates;
  Reduction reduction;
};

struct Block {
  uint3 index;
  unsigned rank;
  int num_threads, num_ended;
  bool is_started;
  uint32_t clock;  // barriers so far
  Barrier barrier;
  std::vector<char> memory;  // guard, dynamic shared memory, guard
  char* shared;
  WatchedMemory watched;
};

const char* name_of(WarpOp op) {
  switch (op) {
    case WarpOp::kSync:
      return "__syncwarp";
    case WarpOp::kShuffle:
      return "a shuffle";
    case WarpOp::kBallot:
      return "__ballot_sync";
    case WarpOp::kAny:
      return "__any_sync";
    case WarpOp::kAll:
      return "__all_sync";
    case WarpOp::kMatchAny:
      return "__match_any_sync";
  }
  return "?";
}

// Not std::mt19937: this is drawn at every switch.
struct Random {
  uint64_t state = 1;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15 + 0x1234567) {}
  uint32_t operator()(uint32_t bound) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<uint32_t>((state * 0x2545f4914f6cdd1d) >> 32) % bound;
  }
};

class Stacks {
 public:
  char* at(size_t number, size_t count) {
    if (count > count_) {
      if (memory_ != nullptr) munmap(memory_, count_ * kStackStride);
      void* memory = mmap(nullptr, count * kStackStride, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::runtime_error("no memory for the threads' stacks");
      memory_ = static_cast<char*>(memory);
      count_ = count;
    }
    return memory_ + number * kStackStride;
  }

 private:
  char* memory_ = nullptr;
  size_t count_ = 0;
};

// One launch at a time; what lasts longer than a launch.
struct Device {
  std::mutex mutex;
  int compute_capability = 80;
  uint64_t cluster_limit = 16;
  uint32_t seed = 0;
  bool switches_at_atomics = false;
  bool finds_races = true;
  WatchedMemory static_shared;
  uint32_t generation = 0;  // counts clusters
  int64_t num_switches = 0;
  Random random{0};
  Stacks stacks;
  std::map<const void*, std::map<cudaFuncAttribute, int>> attributes;
};
Device device;

// The cluster that runs now.
struct Cluster {
  Fiber scheduler;
  const std::function<void()>* kernel = nullptr;
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  std::vector<Warp*> active;  // those with ready lanes
  Barrier barrier{};
  uint32_t clock = 0;
  size_t shared_bytes = 0;
  int num_ended = 0;
  Thread* running = nullptr;
  std::string fault;
};
Cluster* cluster = nullptr;

__attribute__((no_sanitize("address"))) void poison_static_shared() {
  // Not memset: between the arrays there are red zones of AddressSanitizer.
  for (volatile char* byte = __start_emulated_shared; byte != __stop_emulated_shared; ++byte) {
    *byte = static_cast<char>(kPoison);
  }
}

void guard(Block& block, bool is_closed) {
#if defined(__SANITIZE_ADDRESS__)
  const auto set = is_closed ? __asan_poison_memory_region : __asan_unpoison_memory_region;
  set(block.shared - kGuardBytes, kGuardBytes);
  set(block.shared + cluster->shared_bytes, kGuardBytes);
#else
  (void)block;
  (void)is_closed;
#endif
}

std::string words(const uint3& index) {
  std::ostringstream text;
  text << "(" << index.x << ", " << index.y << ", " << index.z << ")";
  return text.str();
}

std::string words(const Thread& thread) {
  return "thread " + words(thread.index) + " of block " + words(thread.block->index);
}

std::string state_of(const Thread& thread) {
  const std::string line = " in line " + std::to_string(thread.line);
  switch (thread.wait) {
    case Wait::kNothing:
      return "has not come";
    case Wait::kBlock:
      return "waits at __syncthreads" + line;
    case Wait::kCluster:
      return "waits at cluster.sync" + line;
    case Wait::kWarp:
      return std::string("waits in ") + name_of(thread.op) + line;
    case Wait::kEnded:
      return "has ended";
  }
  return "?";
}

void make_ready(Thread& thread) {
  thread.wait = Wait::kNothing;
  Warp& warp = *thread.warp;
  if (warp.ready == 0) cluster->active.push_back(&warp);
  warp.ready |= 1u << thread.lane;
}

void leave(bool ends = false) { switch_fiber(cluster->running->fiber, cluster->scheduler, ends); }

[[noreturn]] void fail(std::string fault) {
  cluster->fault = std::move(fault);
  leave(true);
  __builtin_unreachable();
}

void wait_for(Wait what, int line) {
  cluster->running->wait = what;
  cluster->running->line = line;
}

// The lowest lane that a waiting thread's warp operation still lacks, or -1.
int missing_lane(const Thread& thread) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(thread.mask >> lane & 1)) continue;
    if (lane >= thread.warp->num_threads) return lane;
    const Thread& other = thread.warp->threads[lane];
    const bool is_here = other.wait == Wait::kWarp && other.op == thread.op &&
                         other.mask == thread.mask && other.line == thread.line;
    if (!is_here) return lane;
  }
  return -1;
}

// Says who is missing in a warp operation that nobody can finish.
std::string describe_waiting() {
  for (const Thread& thread : cluster->threads) {
    if (thread.wait != Wait::kWarp) continue;
    std::ostringstream text;
    text << "a lane never arrives: " << words(thread) << " " << state_of(thread)
         << " with the mask 0x" << std::hex << thread.mask << std::dec;
    const int lane = missing_lane(thread);
    text << "; lane " << lane << " ";
    if (lane >= thread.warp->num_threads) {
      text << "does not exist";
    } else {
      const Thread& other = thread.warp->threads[lane];
      text << state_of(other);
      if (other.wait == Wait::kWarp) text << " with the mask 0x" << std::hex << other.mask;
    }
    return text.str();
  }
  for (const Thread& thread : cluster->threads) {
    if (thread.wait != Wait::kEnded) {
      return "divergent barrier: " + words(thread) + " " + state_of(thread) +
             " and the others do not come";
    }
  }
  return "";
}

uint64_t result_of(const Thread& thread) {
  const Thread* lanes = thread.warp->threads;
  uint64_t result = 0;
  switch (thread.op) {
    case WarpOp::kSync:
      break;
    case WarpOp::kShuffle:
      // From a lane outside the mask: undefined.
      return thread.mask >> thread.source & 1 ? lanes[thread.source].value : ~uint64_t{0};
    case WarpOp::kAll:
      result = 1;
      [[fallthrough]];
    default:
      for (int lane = 0; lane < thread.warp->num_threads; ++lane) {
        if (!(thread.mask >> lane & 1)) continue;
        const uint64_t bit = uint64_t{1} << lane;
        if (thread.op == WarpOp::kBallot) result |= lanes[lane].value ? bit : 0;
        if (thread.op == WarpOp::kMatchAny) result |= lanes[lane].value == thread.value ? bit : 0;
        if (thread.op == WarpOp::kAny) result |= lanes[lane].value;
        if (thread.op == WarpOp::kAll) result &= lanes[lane].value;
      }
  }
  return result;
}

// Counts the running thread at a barrier of `expected` threads; true if it is the last one.
bool arrive(Barrier& barrier, int expected, int num_ended, Reduction reduction, int predicate,
            const char* name) {
  const Thread& self = *cluster->running;
  const auto divergence = [&](const std::string& others) {
    fail("divergent barrier: " + words(self) + " waits at " + name + " in line " +
         std::to_string(self.line) + ", others " + others);
  };
  if (num_ended > 0) divergence("have ended");
  if (barrier.arrived == 0) {
    barrier = {0, self.line, 0, reduction};
  } else if (barrier.line != self.line || barrier.reduction != reduction) {
    divergence("in line " + std::to_string(barrier.line));
  }
  barrier.predicates += predicate != 0;
  return ++barrier.arrived == expected;
}

void check_guards(const Block& block) {
  const auto check = [&](const char* zone, const char* where) {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (static_cast<unsigned char>(zone[i]) == kGuard) continue;
      fail("out of bounds: block " + words(block.index) + " wrote " + where +
           " of its dynamic shared memory of " + std::to_string(cluster->shared_bytes) +
           " bytes, at byte " + std::to_string(zone + i - block.shared));
    }
  };
  check(block.shared - kGuardBytes, "before the begin");
  check(block.shared + cluster->shared_bytes, "behind the end");
}

void end_block(Block& block) {
  guard(block, false);
  check_guards(block);
  // Others of the cluster must not read it any more.
  std::fill_n(block.shared, cluster->shared_bytes, static_cast<char>(kPoison));
}

void thread_entry() {
  entered(cluster->scheduler);
  (*cluster->kernel)();
  Thread& self = *cluster->running;
  self.wait = Wait::kEnded;
  Block& block = *self.block;
  if (block.barrier.arrived > 0) {
    fail("divergent barrier: " + words(self) + " has ended, others wait at __syncthreads in line " +
         std::to_string(block.barrier.line));
  }
  if (cluster->barrier.arrived > 0) {
    fail("divergent barrier: " + words(self) + " has ended, others wait at cluster.sync in line " +
         std::to_string(cluster->barrier.line));
  }
  ++cluster->num_ended;
  if (++block.num_ended == block.num_threads) end_block(block);
  leave(true);
}

void run(Thread& thread) {
  Block& block = *thread.block;
  if (!block.is_started) {
    // Not earlier: a write from another block before this one runs is lost, as it may be.
    std::fill_n(block.shared, cluster->shared_bytes, static_cast<char>(kPoison));
    block.is_started = true;
  }
  cluster->running = &thread;
  threadIdx = thread.index;
  blockIdx = block.index;
  ++device.num_switches;
  switch_fiber(cluster->scheduler, thread.fiber, false);
  uint64_t canary;
  std::memcpy(&canary, thread.fiber.stack, sizeof canary);
  if (canary != kCanary && cluster->fault.empty()) {
    cluster->fault = "stack overflow: " + words(thread);
  }
}

// Takes one ready thread out of the active warps.
Thread& draw() {
  static Warp* last = nullptr;
  auto& active = cluster->active;
  const bool in_order = device.seed == 0;
  size_t at = 0;
  if (in_order) {
    at = std::min_element(active.begin(), active.end()) - active.begin();
  } else {
    const auto kept =
        device.seed % 2 == 0 ? std::find(active.begin(), active.end(), last) : active.end();
    at = kept != active.end() ? kept - active.begin()
                              : device.random(static_cast<uint32_t>(active.size()));
  }
  Warp& warp = *(last = active[at]);
  const int turn = in_order ? 0 : static_cast<int>(device.random(32));
  const unsigned turned = warp.ready >> turn | (turn == 0 ? 0u : warp.ready << (32 - turn));
  const int lane = (__builtin_ctz(turned) + turn) % 32;
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) {
    active[at] = active.back();
    active.pop_back();
  }
  return warp.threads[lane];
}

void watch(WatchedMemory& memory, const char* begin, size_t bytes) {
  memory.begin = begin;
  memory.bytes = bytes;
  memory.cells.resize((bytes + 3) / 4);
}

bool is_before(const Access& earlier, const Thread& self) {
  const Thread& other = cluster->threads[earlier.thread];
  if (other.block != self.block) return earlier.cluster_clock < cluster->clock;
  if (earlier.block_clock < self.block->clock) return true;
  return other.warp == self.warp && self.clocks.known[other.lane] >= earlier.lane_clock;
}

[[noreturn]] void fail_with_race(const WatchedMemory& memory, const void* address,
                                 const Access& access, const Access& other) {
  const auto did = [](AccessKind kind) {
    return kind == AccessKind::kRead    ? " reads"
           : kind == AccessKind::kWrite ? " writes"
                                        : " changes";
  };
  const bool is_static = &memory == &device.static_shared;
  const ptrdiff_t byte = static_cast<const char*>(address) - memory.begin;
  fail("race: " + words(cluster->threads[access.thread]) + did(access.kind) + " byte " +
       std::to_string(byte) + " of " + (is_static ? "static" : "dynamic") + " shared memory in " +
       place_of(access.code) + ", " + words(cluster->threads[other.thread]) + did(other.kind) +
       " it in " + place_of(other.code) + ", and no barrier is between them");
}

void watch_access(WatchedMemory& memory, const char* address, size_t bytes, AccessKind kind,
                  const void* code) {
  const Thread& self = *cluster->running;
  Access access{code,
                static_cast<uint32_t>(&self - cluster->threads.data()),
                self.clocks.known[self.lane],
                self.block->clock,
                cluster->clock,
                0,
                kind};
  const auto ordered = [&](const Access& earlier) { return is_before(earlier, self); };
  const size_t offset = address - memory.begin, end = std::min(offset + bytes, memory.bytes);
  for (size_t cell = offset / 4; 4 * cell < end; ++cell) {
    const size_t low = std::max(offset, 4 * cell) - 4 * cell,
                 high = std::min(end - 4 * cell, size_t{4});
    access.bytes = static_cast<uint8_t>((1u << high) - (1u << low));
    Access other;
    if (races(memory.cells[cell], access, device.generation, ordered, &other)) {
      fail_with_race(memory, address, access, other);
    }
  }
}

void note(const void* address, size_t bytes, AccessKind kind, const void* code) {
  if (cluster == nullptr || !device.finds_races) return;
  const char* at = static_cast<const char*>(address);
  if (device.static_shared.contains(at)) {
    return watch_access(device.static_shared, at, bytes, kind, code);
  }
  for (Block& block : cluster->blocks) {
    if (block.watched.contains(at)) return watch_access(block.watched, at, bytes, kind, code);
  }
}

void prepare_block(Block& block, size_t number, const uint3& index, unsigned rank) {
  const int num_threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  block.index = index;
  block.rank = rank;
  block.num_threads = num_threads;
  block.num_ended = 0;
  block.is_started = false;
  block.clock = 0;
  block.barrier = {};
  // 16 bytes of alignment and no more, that is all a kernel may count on.
  block.memory.assign(2 * kGuardBytes + cluster->shared_bytes + 32, static_cast<char>(kGuard));
  auto begin = reinterpret_cast<uintptr_t>(block.memory.data() + kGuardBytes);
  begin += (16 - begin % 32 + 32) % 32;
  block.shared = reinterpret_cast<char*>(begin);
  watch(block.watched, block.shared, cluster->shared_bytes);
  const int num_warps = (num_threads + 31) / 32;
  for (int t = 0; t < num_threads; ++t) {
    const size_t at = number * num_threads + t;
    Thread& thread = cluster->threads[at];
    Warp& warp = cluster->warps[number * num_warps + t / 32];
    if (t % 32 == 0) warp = {&block, &thread, std::min(32, num_threads - t), 0};
    const unsigned x = t % blockDim.x, y = t / blockDim.x % blockDim.y;
    thread.block = &block;
    thread.warp = &warp;
    thread.index = {x, y, t / (blockDim.x * blockDim.y)};
    thread.lane = t % 32;
    thread.clocks = {};
    thread.clocks.known[thread.lane] = 1;
    thread.fiber.stack = device.stacks.at(at, cluster->threads.size());
    thread.fiber.stack_bytes = kStackBytes;
    prepare(thread.fiber, thread_entry);
    std::memcpy(thread.fiber.stack, &kCanary, sizeof kCanary);
    make_ready(thread);
  }
}

// The blocks whose first one is `begin`.
void run_cluster(Cluster& current, const uint3& begin, const dim3& shape) {
  cluster = &current;
  current.active.clear();
  current.barrier = {};
  current.clock = 0;
  current.num_ended = 0;
  ++device.generation;
  watch(device.static_shared, __start_emulated_shared,
        __stop_emulated_shared - __start_emulated_shared);
  for (unsigned rank = 0; rank < current.blocks.size(); ++rank) {
    const uint3 index{begin.x + rank % shape.x, begin.y + rank / shape.x % shape.y,
                      begin.z + rank / (shape.x * shape.y)};
    prepare_block(current.blocks[rank], rank, index, rank);
  }
  poison_static_shared();
  for (Block& block : current.blocks) guard(block, true);
  while (!current.active.empty() && current.fault.empty()) run(draw());
  if (current.fault.empty()) current.fault = describe_waiting();
  for (Block& block : current.blocks) guard(block, false);
  cluster = nullptr;
  if (!current.fault.empty()) throw std::runtime_error("emulated CUDA: " + current.fault);
}

struct ClusterShape {
  dim3 shape{1, 1, 1};
  bool is_known = true;  // no attribute that is not emulated
};

ClusterShape shape_of(const cudaLaunchConfig_t& config) {
  ClusterShape result;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeIgnore) continue;
    if (attribute.id != cudaLaunchAttributeClusterDimension) result.is_known = false;
    const auto& dimension = attribute.val.clusterDim;
    result.shape = dim3(dimension.x, dimension.y, dimension.z);
  }
  return result;
}

int attribute_of(const void* kernel, cudaFuncAttribute attribute, int otherwise) {
  const auto of_kernel = device.attributes.find(kernel);
  if (of_kernel == device.attributes.end()) return otherwise;
  const auto found = of_kernel->second.find(attribute);
  return found == of_kernel->second.end() ? otherwise : found->second;
}

cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const uint64_t num_threads = uint64_t{block.x} * block.y * block.z;
  if (num_threads == 0 || num_threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  const int allowed = attribute_of(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 * 1024);
  if (config.dynamicSmemBytes > static_cast<size_t>(std::max(allowed, 48 * 1024))) {
    return cudaErrorInvalidValue;
  }
  const auto [shape, is_known] = shape_of(config);
  if (!is_known) return cudaErrorNotSupported;
  const uint64_t size = uint64_t{shape.x} * shape.y * shape.z;
  if (size == 1) return cudaSuccess;
  if (device.compute_capability < 90) return cudaErrorNotSupported;
  const bool is_large = attribute_of(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 0);
  if (size == 0 || size > (is_large ? 16 : 8)) return cudaErrorInvalidClusterSize;
  if (size > device.cluster_limit) return cudaErrorInvalidClusterSize;
  const bool divides = grid.x % shape.x == 0 && grid.y % shape.y == 0 && grid.z % shape.z == 0;
  return divides ? cudaSuccess : cudaErrorInvalidClusterSize;
}

}  // namespace

int block_barrier(Reduction reduction, int predicate, int line) {
  wait_for(Wait::kBlock, line);
  Thread& self = *cluster->running;
  Block& block = *self.block;
  Barrier& barrier = block.barrier;
  if (arrive(barrier, block.num_threads, block.num_ended, reduction, predicate, "__syncthreads")) {
    const int count = barrier.predicates;
    const int result = reduction == Reduction::kAnd  ? count == block.num_threads
                       : reduction == Reduction::kOr ? count > 0
                                                     : count;
    barrier = {};
    ++block.clock;
    Thread* first =
        &self - (self.index.x + blockDim.x * (self.index.y + blockDim.y * self.index.z));
    for (int t = 0; t < block.num_threads; ++t) {
      first[t].result = static_cast<uint64_t>(result);
      make_ready(first[t]);
    }
  }
  leave();
  return static_cast<int>(self.result);
}

void cluster_barrier(int line) {
  wait_for(Wait::kCluster, line);
  const int expected = static_cast<int>(cluster->threads.size());
  if (arrive(cluster->barrier, expected, cluster->num_ended, Reduction::kNone, 0, "cluster.sync")) {
    cluster->barrier = {};
    ++cluster->clock;
    for (Block& block : cluster->blocks) ++block.clock;
    for (Thread& thread : cluster->threads) make_ready(thread);
  }
  leave();
}

uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, int source, int line) {
  wait_for(Wait::kWarp, line);
  Thread& self = *cluster->running;
  self.op = op;
  self.mask = mask;
  self.value = value;
  self.source = source;
  if (!(mask >> self.lane & 1)) {
    fail("wrong mask: " + words(self) + " is not in the mask of " + name_of(op) + " in line " +
         std::to_string(line));
  }
  const Warp& warp = *self.warp;
  if ((warp.ready & mask) == 0 && missing_lane(self) < 0) {
    if (op == WarpOp::kSync) {
      LaneClocks* clocks[32] = {};
      for (int lane = 0; lane < warp.num_threads; ++lane) clocks[lane] = &warp.threads[lane].clocks;
      join(clocks, mask);
    }
    for (int lane = 0; lane < warp.num_threads; ++lane) {
      if (mask >> lane & 1) warp.threads[lane].result = result_of(warp.threads[lane]);
    }
    for (int lane = 0; lane < warp.num_threads; ++lane) {
      if (mask >> lane & 1) make_ready(warp.threads[lane]);
    }
  }
  leave();
  return self.result;
}

int lane() { return cluster->running->lane; }

void before_atomic(const void* address, size_t bytes) {
  if (device.switches_at_atomics) {
    make_ready(*cluster->running);
    leave();
  }
  note(address, bytes, AccessKind::kAtomic, __builtin_return_address(0));
}

void note_access(const void* address, size_t bytes, bool is_write, const void* code) {
  note(address, bytes, is_write ? AccessKind::kWrite : AccessKind::kRead, code);
}

void trap(const char* reason) { fail(words(*cluster->running) + ": " + reason); }

void* dynamic_shared() { return cluster->running->block->shared; }
unsigned cluster_rank() { return cluster->running->block->rank; }
unsigned cluster_size() { return static_cast<unsigned>(cluster->blocks.size()); }

void* map_shared_rank(void* address, unsigned rank) {
  const char* own = cluster->running->block->shared;
  const ptrdiff_t offset = static_cast<char*>(address) - own;
  if (offset < 0 || offset > static_cast<ptrdiff_t>(cluster->shared_bytes)) {
    trap("map_shared_rank of an address outside of the block's dynamic shared memory");
  }
  if (rank >= cluster->blocks.size()) trap("map_shared_rank of a block that is not in the cluster");
  return cluster->blocks[rank].shared + offset;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(device.mutex);
  const cudaError_t error = check_launch(config, kernel);
  if (error != cudaSuccess) return error;
  const dim3 shape = shape_of(config).shape;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  Cluster current;
  current.kernel = &thread;
  current.shared_bytes = config.dynamicSmemBytes;
  const size_t num_threads = blockDim.x * blockDim.y * blockDim.z;
  current.blocks.resize(shape.x * shape.y * shape.z);
  current.warps.resize(current.blocks.size() * ((num_threads + 31) / 32));
  current.threads.resize(current.blocks.size() * num_threads);
  const uint3 counts{gridDim.x / shape.x, gridDim.y / shape.y, gridDim.z / shape.z};
  std::vector<uint32_t> order(size_t{counts.x} * counts.y * counts.z);
  for (uint32_t i = 0; i < order.size(); ++i) {
    const uint32_t other = device.seed == 0 ? i : device.random(i + 1);
    order[i] = order[other];
    order[other] = i;
  }
  for (const uint32_t number : order) {
    run_cluster(current,
                {number % counts.x * shape.x, number / counts.x % counts.y * shape.y,
                 number / (counts.x * counts.y) * shape.z},
                shape);
  }
  return cudaSuccess;
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(device.mutex);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > shared_limit()) {
    return cudaErrorInvalidValue;
  }
  device.attributes[kernel][attribute] = value;
  return cudaSuccess;
}

cudaError_t max_active_clusters(int* count, const void* kernel, const cudaLaunchConfig_t& config) {
  const std::lock_guard<std::mutex> lock(device.mutex);
  *count = 0;
  const cudaError_t error = check_launch(config, kernel);
  if (error == cudaSuccess) *count = 1;
  return error;
}

void set_schedule(uint32_t seed, bool switches_at_atomics) {
  const std::lock_guard<std::mutex> lock(device.mutex);
  device.seed = seed;
  device.random = Random(seed);
  device.switches_at_atomics = switches_at_atomics;
}

int compute_capability() { return device.compute_capability; }

int64_t num_switches() { return device.num_switches; }

void set_race_detection(bool is_on) {
  const std::lock_guard<std::mutex> lock(device.mutex);
  device.finds_races = is_on;
}

void set_compute_capability(int compute_capability) {
  const std::lock_guard<std::mutex> lock(device.mutex);
  device.compute_capability = compute_capability;
  device.attributes.clear();
}

void set_cluster_limit(int blocks) {
  const std::lock_guard<std::mutex> lock(device.mutex);
  device.cluster_limit = static_cast<uint64_t>(blocks);
}

}  // namespace cuda_emulation
