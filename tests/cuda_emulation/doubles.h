// Test doubles: kernels that are right or wrong on purpose. Arrays are the host's.
#pragma once

#include <cstdint>

enum class Barriers { kMet, kLeft, kOther };

// Of 256 floats; see block_sum.h.
float block_sum(const float* values);
float block_sum_without_barrier(const float* values);

// 64 threads at a barrier; or half of them leave before it; or half of them wait at another one.
void meet(Barriers how);

// A block of 32 threads with `count` floats of dynamic shared memory writes 1 at `at`, and returns
// what it finds at `read_at`.
float write_shared(int count, int at, int read_at);

// The same in a static array of 5 floats.
float write_static_shared(int at, int read_at);

// One warp: the lanes of `present` shuffle with the mask `mask`, the others end.
void shuffle_among(unsigned mask, unsigned present);

// Warp operations of 64 lanes' values; out (8, 64).
void warp_operations(const int* values, int* out);

// 64 threads each add one; without care by a load and an atomicExch, which is wrong if another
// thread comes in between.
int count_up(bool is_careful);

// 64 threads add one each to a counter in shared memory.
int count_in_shared(bool is_atomic);

// Each lane of a warp reads what the next one wrote to shared memory, out (32).
void pass_around(bool has_syncwarp, int* out);

// 32 threads in `blocks` blocks of one cluster: each adds up what the others hold in their shared
// memory, out (blocks); `waits` for the others before it reads and before it ends.
void sum_over_cluster(int blocks, bool waits, int* out);

// out (blocks): the turn at which each one ran.
void order_of_blocks(int blocks, int* out);

// Adds up in shared memory, through `steps` barriers, 512 threads.
int64_t many_barriers(int steps);

// Launches nothing much; `allowed_bytes` of dynamic shared memory are asked for before if not 0.
void launch_with(int threads, int64_t dynamic_bytes, int64_t allowed_bytes);
