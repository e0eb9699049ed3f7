// SPDX-License-Identifier: Apache-2.0
// Kernel launches and dynamic shared memory, the same for nvcc and for the emulator (FASTMMOE_EMULATOR).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef FASTMMOE_EMULATOR
#include <cstring>
#include <functional>
#include <tuple>

#include "testing/emulator/emulator.h"
#include "testing/emulator/settings.h"
#endif

namespace fastmmoe {

/// A CUDA call failed. what() names the call and CUDA's error.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic shared memory
};

#ifndef FASTMMOE_EMULATOR
inline void check_cuda(cudaError_t error, const std::string& call) {
  if (error == cudaSuccess) return;
  throw CudaError(call + " failed: " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

template <typename Kernel>
void allow_shared_bytes(const char* name, Kernel* kernel, size_t bytes) {
  constexpr size_t kAllowedWithoutAsking = 48 * 1024;
  if (bytes <= kAllowedWithoutAsking) return;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
      "kernel '" + std::string(name) + "' with " + std::to_string(bytes) + " bytes of shared memory");
}
#endif

/// Dynamic shared memory that a block may have on the current device. Throws CudaError where there is none.
inline size_t most_shared_bytes() {
#ifdef FASTMMOE_EMULATOR
  return emulator::max_dynamic_shared_bytes(emulator::current_settings().architecture);
#else
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device), "look for the current device");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "look for the shared memory of device " + std::to_string(device));
  return static_cast<size_t>(bytes);
#endif
}

/// Starts to copy between two places in device memory that do not overlap. Throws CudaError where CUDA
/// refuses.
inline void copy_on_device(void* to, const void* from, size_t bytes, cudaStream_t stream) {
#ifdef FASTMMOE_EMULATOR
  static_cast<void>(stream);
  std::memcpy(to, from, bytes);
#else
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream),
             "copy of " + std::to_string(bytes) + " bytes on the device");
#endif
}

/// Starts a kernel. Throws CudaError where CUDA refuses the launch or reports an earlier error; the emulator
/// runs the kernel to its end and throws EmulatorError. Use LAUNCH_KERNEL, which passes the name.
template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* name, void (*kernel)(Parameters...), const LaunchConfig& config,
                   cudaStream_t stream, const Arguments&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments),
                "as many arguments as the kernel has parameters");
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "kernel parameters are copied byte by byte");
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "kernel parameters take more than 4 KiB");
#ifdef FASTMMOE_EMULATOR
  static_cast<void>(stream);  // the kernel has ended when this function returns
  const std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  emulator::launch(name, config.grid, config.block, config.shared_bytes, [&] { std::apply(kernel, values); });
#else
  allow_shared_bytes(name, kernel, config.shared_bytes);
  cudaLaunchConfig_t launch{};
  launch.gridDim = config.grid;
  launch.blockDim = config.block;
  launch.dynamicSmemBytes = config.shared_bytes;
  launch.stream = stream;
  check_cuda(cudaLaunchKernelEx(&launch, kernel, static_cast<Parameters>(arguments)...),
             "launch of kernel '" + std::string(name) + "'");
#endif
}

}  // namespace fastmmoe

// LAUNCH_KERNEL(kernel, LaunchConfig, cudaStream_t, arguments...). A template goes in parentheses.
#define LAUNCH_KERNEL(kernel, ...) ::fastmmoe::launch_kernel(#kernel, kernel, __VA_ARGS__)

// Declares `Type* const name`, the dynamic shared memory of the block, aligned to 128 bytes.
#ifdef FASTMMOE_EMULATOR
#define DYNAMIC_SHARED(Type, name) \
  Type* const name = static_cast<Type*>(::fastmmoe::emulator::Block::current().shared().dynamic())
#else
#define DYNAMIC_SHARED(Type, name)                                          \
  extern __shared__ __align__(128) unsigned char fastmmoe_dynamic_shared[]; \
  Type* const name = reinterpret_cast<Type*>(fastmmoe_dynamic_shared)
#endif
