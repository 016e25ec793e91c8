// The switch saves the registers that a call must keep and exchanges the stack pointer; elsewhere
// than on x86-64 it is swapcontext, which is slower by a system call. AddressSanitizer is told of
// every switch.
#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {

#if defined(__x86_64__) && !defined(CUDA_EMULATION_UCONTEXT)

void exchange_stacks(void** saved, void* loaded) __asm__("cuda_emulation_exchange_stacks")
    __attribute__((visibility("hidden")));

__asm__(R"(
.text
.type cuda_emulation_exchange_stacks, @function
.hidden cuda_emulation_exchange_stacks
.globl cuda_emulation_exchange_stacks
cuda_emulation_exchange_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulation_exchange_stacks, .-cuda_emulation_exchange_stacks
)");

static void arrange(Fiber& fiber, void (*entry)()) {
  const auto top = reinterpret_cast<uintptr_t>(fiber.stack + fiber.stack_bytes) & ~uintptr_t{15};
  void** slots = reinterpret_cast<void**>(top);
  *--slots = nullptr;                              // entry's return address: it has none
  *--slots = reinterpret_cast<void*>(entry);       // where the switch returns to
  for (int i = 0; i < 6; ++i) *--slots = nullptr;  // the registers it restores
  fiber.stack_pointer = slots;
}

static void exchange(Fiber& from, Fiber& to) {
  exchange_stacks(&from.stack_pointer, to.stack_pointer);
}

#else

static void arrange(Fiber& fiber, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

static void exchange(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

void prepare(Fiber& fiber, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  // What ran here before may have ended in the middle of a function.
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
#endif
  fiber.fake_stack = nullptr;
  arrange(fiber, entry);
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool from_ends) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
  exchange(from, to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void entered([[maybe_unused]] Fiber& scheduler) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack = nullptr;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &scheduler.stack_bytes);
  scheduler.stack = static_cast<char*>(const_cast<void*>(stack));
#endif
}

}  // namespace cuda_emulation
