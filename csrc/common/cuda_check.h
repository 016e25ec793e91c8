// What every CUDA source needs: checked calls and dynamic shared memory.
//
// The sources also compile as C++ for the host emulation (tests/cuda_emulation), whose
// cuda_runtime.h stands before CUDA's and defines MMAD_FAST_DYNAMIC_SHARED itself.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace mmad_fast {
namespace cuda {

inline void check(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the next call is not to report this error again
  const std::string path = file;
  const size_t folder = path.rfind("csrc/");
  throw std::runtime_error((folder == std::string::npos ? path : path.substr(folder)) + ":" +
                           std::to_string(line) + ": " + call + ": " + cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace mmad_fast

// Throws std::runtime_error with the place, the call and CUDA's words.
#define MMAD_FAST_CHECK_CUDA(call) ::mmad_fast::cuda::check((call), #call, __FILE__, __LINE__)

// In a kernel: `type* name`, the dynamic shared memory of the block, aligned to 16 bytes.
#ifndef MMAD_FAST_DYNAMIC_SHARED
#define MMAD_FAST_DYNAMIC_SHARED(type, name)                                       \
  extern __shared__ __align__(16) unsigned char mmad_fast_dynamic_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(mmad_fast_dynamic_shared_memory)
#endif
