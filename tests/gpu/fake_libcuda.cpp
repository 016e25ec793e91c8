// A stand-in for libcuda.so.1 that prints how it is called: test_launcher.py and test_tensorrt.py
// run the real cuda-bindings on it. Its device 0 has compute capability 8.9.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

void* const kContext = reinterpret_cast<void*>(0xc0);
void* const kModule = reinterpret_cast<void*>(0x30);
void* const kFunction = reinterpret_cast<void*>(0x40);
void* const kStream = reinterpret_cast<void*>(0x5000);
void* const kGraph = reinterpret_cast<void*>(0x6000);
void* const kExecutable = reinterpret_cast<void*>(0x7000);
constexpr int kAttributeMajor = 75, kAttributeMinor = 76;
// The parameters of fake_driver.py's kernel.
constexpr int kSizes[] = {8, 8, 4, 8, 4, 4, 8, 8};

// Python prints between these lines.
__attribute__((constructor)) void WriteLineByLine() { std::setvbuf(stdout, nullptr, _IOLBF, 0); }

}  // namespace

extern "C" {

int cuInit(unsigned) { return 0; }

int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == kAttributeMajor ? 8 : attribute == kAttributeMinor ? 9 : -1;
  return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = kContext;
  return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  std::printf("release %d\n", device);
  return 0;
}

int cuCtxPushCurrent_v2(void* context) { return context == kContext ? 0 : 201; }

int cuCtxPopCurrent_v2(void** context) {
  *context = kContext;
  return 0;
}

int cuModuleLoadData(void** module, const void* image) {
  *module = kModule;
  std::printf("load %s\n", static_cast<const char*>(image));
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = kFunction;
  std::printf("function %s of %p\n", name, module);
  return 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  std::printf("attribute %d of %p is %d\n", attribute, function, value);
  return 0;
}

int cuModuleUnload(void* module) {
  std::printf("unload %p\n", module);
  return 0;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                   void* stream, void** parameters, void** extra) {
  if (extra != nullptr) return 1;
  std::printf("launch %p grid %u %u %u block %u %u %u shared %u stream %p\n", function, grid_x,
              grid_y, grid_z, block_x, block_y, block_z, shared, stream);
  int index = 0;
  for (const int size : kSizes) {
    const auto* bytes = static_cast<const unsigned char*>(parameters[index++]);
    for (int i = 0; i < size; ++i) std::printf("%02x", bytes[i]);
  }
  std::printf("\n");
  std::fflush(stdout);
  return 0;
}

int cuMemAlloc_v2(std::uint64_t* address, std::size_t size) {
  std::printf("allocate %zu\n", size);
  *address = reinterpret_cast<std::uint64_t>(std::malloc(size));
  return 0;
}

int cuMemFree_v2(std::uint64_t address) {
  std::printf("free\n");
  std::free(reinterpret_cast<void*>(address));
  return 0;
}

int cuMemAllocHost_v2(void** address, std::size_t size) {
  std::printf("allocate pinned %zu\n", size);
  *address = std::malloc(size);
  return 0;
}

int cuMemFreeHost(void* address) {
  std::printf("free pinned\n");
  std::free(address);
  return 0;
}

int cuMemcpyHtoDAsync_v2(std::uint64_t, const void*, std::size_t size, void* stream) {
  std::printf("to device %zu in %p\n", size, stream);
  return 0;
}

int cuMemcpyDtoHAsync_v2(void*, std::uint64_t, std::size_t size, void* stream) {
  std::printf("to host %zu in %p\n", size, stream);
  return 0;
}

int cuStreamCreate(void** stream, unsigned flags) {
  std::printf("stream %p flags %u\n", kStream, flags);
  *stream = kStream;
  return 0;
}

int cuStreamDestroy_v2(void* stream) {
  std::printf("destroy stream %p\n", stream);
  return 0;
}

int cuStreamSynchronize(void* stream) {
  std::printf("wait for %p\n", stream);
  std::fflush(stdout);
  return 0;
}

int cuCtxSynchronize() {
  std::printf("wait for all\n");
  return 0;
}

int cuStreamBeginCapture_v2(void* stream, int mode) {
  std::printf("begin capture %p mode %d\n", stream, mode);
  return 0;
}

int cuStreamEndCapture(void* stream, void** graph) {
  std::printf("end capture %p\n", stream);
  *graph = kGraph;
  return 0;
}

int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
  std::printf("instantiate %p flags %llu\n", graph, flags);
  *executable = kExecutable;
  return 0;
}

int cuGraphLaunch(void* executable, void* stream) {
  std::printf("launch %p in %p\n", executable, stream);
  return 0;
}

int cuGraphDestroy(void* graph) {
  std::printf("destroy graph %p\n", graph);
  return 0;
}

int cuGraphExecDestroy(void* executable) {
  std::printf("destroy executable %p\n", executable);
  return 0;
}

// cuda-bindings asks for every function of the driver by this one.
int cuGetProcAddress_v2(const char* name, void** function, int, std::uint64_t, int* status) {
  void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = dlsym(self, (std::string(name) + "_v2").c_str());
  if (*function == nullptr) *function = dlsym(self, name);
  if (status != nullptr) *status = *function == nullptr;
  return *function == nullptr ? 500 : 0;
}

int cuGetProcAddress(const char* name, void** function, int version, std::uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

}  // extern "C"
