// SPDX-License-Identifier: Apache-2.0
// In place of the CUDA runtime below the object files that nvcc wrote: prints each launch of a kernel and
// runs none. The names that begin with two underscores are those that nvcc's host code calls.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <map>
#include <string>

#include "launches.h"

const bool kRunsKernels = false;

void* device_memory(size_t) { return reinterpret_cast<void*>(256); }

void read_widths(std::istream&) {}

namespace {

int most_shared_bytes = 0;

std::map<const void*, std::string>& symbols() {
  static std::map<const void*, std::string> symbols;
  return symbols;
}

}  // namespace

// CUDA C++ Programming Guide, technical specifications for each compute capability: of 8.0 and 8.7, or less.
void set_architecture(int architecture) {
  const bool has_less = architecture == 86 || architecture == 89 || architecture == 120;
  most_shared_bytes = (has_less ? 99 : 163) * 1024;
}

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* symbol, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  symbols()[function] = symbol;
}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorNotSupported; }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin) return cudaErrorNotSupported;
  *value = most_shared_bytes;
  return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t) { return "no CUDA"; }
const char* cudaGetErrorString(cudaError_t) { return "launches are only recorded"; }

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void**) {
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  std::printf("launch %s %u %u %u %u %zu\n", symbols().at(function).c_str(), grid.x, grid.y, grid.z,
              block.x * block.y * block.z, config->dynamicSmemBytes);
  return cudaSuccess;
}
}
