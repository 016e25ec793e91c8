#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "common/cuda_device.h"

namespace mmad_fast {
namespace cuda {
namespace {

// 13000 is 13.0.
std::string version_words(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string without_driver(int runtime_version) {
  return "no NVIDIA driver was found (libcuda.so.1); on a machine with an NVIDIA GPU install a "
         "driver for CUDA " +
         version_words(runtime_version) + " or newer, elsewhere take backend='cpu'";
}

std::string problem_of(cudaError_t error) {
  int driver_version = 0, runtime_version = 0;
  cudaDriverGetVersion(&driver_version);  // 0 without a driver
  MMAD_FAST_CHECK_CUDA(cudaRuntimeGetVersion(&runtime_version));
  if (driver_version == 0) return without_driver(runtime_version);
  if (error == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver supports CUDA " + version_words(driver_version) +
           " and these kernels need " + version_words(runtime_version) + "; update the driver";
  }
  if (error == cudaErrorNoDevice) {
    return "the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES";
  }
  return std::string("CUDA does not start: ") + cudaGetErrorString(error) + "; check nvidia-smi";
}

}  // namespace

DeviceGuard::DeviceGuard(int device) : previous_(device), is_changed_(false) {
  MMAD_FAST_CHECK_CUDA(cudaGetDevice(&previous_));
  if (previous_ == device) return;
  MMAD_FAST_CHECK_CUDA(cudaSetDevice(device));
  is_changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (is_changed_) cudaSetDevice(previous_);
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::string driver_problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  return error == cudaSuccess ? "" : problem_of(error);
}

int compute_capability(int device) {
  int major = 0, minor = 0;
  MMAD_FAST_CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  MMAD_FAST_CHECK_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

void* allocate(int device, int64_t bytes, void* stream) {
  const DeviceGuard guard(device);
  void* memory = nullptr;
  MMAD_FAST_CHECK_CUDA(
      cudaMallocAsync(&memory, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)));
  return memory;
}

void free(int device, void* memory, void* stream) {
  const DeviceGuard guard(device);
  MMAD_FAST_CHECK_CUDA(cudaFreeAsync(memory, static_cast<cudaStream_t>(stream)));
}

void copy_to_host(int device, const void* source, int64_t bytes, void* target, void* stream) {
  const DeviceGuard guard(device);
  const auto queue = static_cast<cudaStream_t>(stream);
  MMAD_FAST_CHECK_CUDA(
      cudaMemcpyAsync(target, source, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, queue));
  MMAD_FAST_CHECK_CUDA(cudaStreamSynchronize(queue));
}

}  // namespace cuda
}  // namespace mmad_fast
