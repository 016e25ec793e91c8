// Races in shared memory: two accesses to the same bytes by different threads, at least one of them
// a write and not both atomic, which no barrier puts into an order.
//
// g++ calls a hook before each load and store of the CUDA sources (-fsanitize=thread, without its
// library). Each four bytes of shared memory remember the last write and two of the reads since.
// Time is counted in barriers of the block and the cluster, and within a warp in __syncwarp: every
// lane knows up to where it has synchronised with every other. Shuffles and votes are no memory
// barriers. What is reported is a race; not all are: the third reader is forgotten, memcpy has no
// hook, and global memory is not watched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cuda_emulation {

enum class AccessKind : uint8_t { kRead, kWrite, kAtomic };

// Where and when a thread reached into shared memory.
struct Access {
  const void* code = nullptr;  // null: never
  uint32_t thread = 0;         // its number in the cluster
  uint32_t lane_clock = 0, block_clock = 0, cluster_clock = 0;
  uint8_t bytes = 0;  // of the four, as bits
  AccessKind kind = AccessKind::kRead;
};

struct Cell {
  uint32_t generation = 0;  // what an earlier cluster left counts for nothing
  Access write, reads[2];
};

// A piece of shared memory and what is known of it.
struct WatchedMemory {
  const char* begin = nullptr;
  size_t bytes = 0;
  std::vector<Cell> cells;

  bool contains(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - begin) < bytes;
  }
};

// What a lane knows of the lanes of its warp; its own entry is its clock.
struct LaneClocks {
  uint32_t known[32];
};

// After a __syncwarp of the lanes of `mask`: each knows what one of them knew.
void join(LaneClocks* lanes[32], unsigned mask);

// Notes the access; true if it races with `*other`, which is set. `is_before(access)` says whether
// an earlier access is ordered before this one.
template <typename IsBefore>
bool races(Cell& cell, const Access& access, uint32_t generation, const IsBefore& is_before,
           Access* other) {
  if (cell.generation != generation) {
    cell = Cell{};
    cell.generation = generation;
  }
  const auto conflicts = [&](const Access& earlier) {
    const bool is_possible =
        earlier.code != nullptr && (earlier.bytes & access.bytes) != 0 &&
        earlier.thread != access.thread &&
        !(earlier.kind == AccessKind::kAtomic && access.kind == AccessKind::kAtomic);
    if (!is_possible || is_before(earlier)) return false;
    *other = earlier;
    return true;
  };
  if (conflicts(cell.write)) return true;
  if (access.kind != AccessKind::kRead) {
    if (conflicts(cell.reads[0]) || conflicts(cell.reads[1])) return true;
    cell.write = access;
    cell.reads[0] = cell.reads[1] = Access{};
    return false;
  }
  Access& first = cell.reads[0];
  const bool takes_first = first.code == nullptr || first.thread == access.thread ||
                           (cell.reads[1].code != nullptr && is_before(first));
  (takes_first ? first : cell.reads[1]) = access;
  return false;
}

// "file.cu:12", if addr2line is there.
std::string place_of(const void* code);

}  // namespace cuda_emulation
