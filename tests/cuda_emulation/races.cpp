#include "races.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <sstream>

namespace cuda_emulation {

void join(LaneClocks* lanes[32], unsigned mask) {
  LaneClocks all{};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    for (int i = 0; i < 32; ++i) all.known[i] = std::max(all.known[i], lanes[lane]->known[i]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    *lanes[lane] = all;
    ++lanes[lane]->known[lane];
  }
}

std::string place_of(const void* code) {
  Dl_info module{};
  if (dladdr(code, &module) == 0) return "?";
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(module.dli_fbase);
  std::ostringstream command;
  command << "addr2line -s -e '" << module.dli_fname << "' 0x" << std::hex << offset - 1 << " 2>&1";
  std::string line;
  if (FILE* output = popen(command.str().c_str(), "r")) {
    char buffer[256];
    if (std::fgets(buffer, sizeof buffer, output) != nullptr) line = buffer;
    pclose(output);
  }
  return line.substr(0, line.find_first_of(" \n"));
}

}  // namespace cuda_emulation

// What g++ calls.

using cuda_emulation::AccessKind;

#define HOOKS(bytes)                                                                 \
  void __tsan_read##bytes(void* address) {                                           \
    cuda_emulation::note_access(address, bytes, false, __builtin_return_address(0)); \
  }                                                                                  \
  void __tsan_write##bytes(void* address) {                                          \
    cuda_emulation::note_access(address, bytes, true, __builtin_return_address(0));  \
  }                                                                                  \
  void __tsan_unaligned_read##bytes(void* address) {                                 \
    cuda_emulation::note_access(address, bytes, false, __builtin_return_address(0)); \
  }                                                                                  \
  void __tsan_unaligned_write##bytes(void* address) {                                \
    cuda_emulation::note_access(address, bytes, true, __builtin_return_address(0));  \
  }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) {
  cuda_emulation::note_access(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  cuda_emulation::note_access(address, bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
// Guards of static variables in functions.
unsigned char __tsan_atomic8_load(const volatile unsigned char* address, int) {
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
}
