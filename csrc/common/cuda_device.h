// Devices and their memory, for callers that have no CUDA headers.
#pragma once

#include <cstdint>
#include <string>

namespace mmad_fast {
namespace cuda {

// Makes a device the current one, and the one before it when it goes.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_;
  bool is_changed_;
};

// How many devices there are; 0 also where driver_problem() says why CUDA cannot run.
int device_count();

// Why CUDA cannot run here, with what to do; empty if it can.
std::string driver_problem();

// As nvcc writes it: 89 is 8.9.
int compute_capability(int device);

// Memory in the order of a stream (a cudaStream_t).
void* allocate(int device, int64_t bytes, void* stream);
void free(int device, void* memory, void* stream);

// Waits for the stream.
void copy_to_host(int device, const void* source, int64_t bytes, void* target, void* stream);

}  // namespace cuda
}  // namespace mmad_fast
