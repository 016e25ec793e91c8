// A stack of its own for each emulated thread, and the switch between two of them.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || defined(CUDA_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace cuda_emulation {

// Where an execution stands while it is not running.
struct Fiber {
  char* stack = nullptr;  // lowest address
  size_t stack_bytes = 0;
#if defined(__x86_64__) && !defined(CUDA_EMULATION_UCONTEXT)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// Makes a fiber that begins with entry(), which must not return.
void prepare(Fiber& fiber, void (*entry)());

// Leaves `from` for `to`; returns when somebody switches back. With `from_ends` nobody will.
void switch_fiber(Fiber& from, Fiber& to, bool from_ends);

// The first thing that entry() does: the caller's stack is the scheduler's.
void entered(Fiber& scheduler);

}  // namespace cuda_emulation
