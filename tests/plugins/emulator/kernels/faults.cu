// SPDX-License-Identifier: Apache-2.0
// Kernels that are wrong, each in one way.
#include <cstdint>
#include <stdexcept>

#include "common/cuda/launch.h"
#include "common/cuda/ptx.cuh"
#include "testing/emulator/entry.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using fastmmoe::LaunchConfig;
using fastmmoe::emulator::guarded;

constexpr unsigned kAllLanes = 0xffffffff;
constexpr int kSharedFloats = 256;

__global__ void missing_barrier(float* out) {
  __shared__ float values[kSharedFloats];
  values[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = values[kSharedFloats - 1 - threadIdx.x];
}

// Out [blocks, 2]: what a block finds in a static and a dynamic variable that only earlier blocks wrote.
__global__ void unwritten_shared(float* out) {
  __shared__ float fixed[8];
  DYNAMIC_SHARED(float, dynamic);
  out[2 * blockIdx.x] = fixed[3];
  out[2 * blockIdx.x + 1] = dynamic[3];
  fixed[3] = dynamic[3] = 1;
}

__global__ void unwritten_local(int* out, int count) {
  int values[8];
  for (int i = 0; i < count; ++i) values[i] = i;
  out[0] = values[7];
}

__global__ void two_functions(int* out) {
  if (threadIdx.x % 32 < 16) {
    out[threadIdx.x] = __ballot_sync(kAllLanes, 1);
  } else {
    out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
  }
}

__global__ void two_masks(int* out) {
  out[threadIdx.x] = __any_sync(threadIdx.x % 32 < 16 ? 0x00ffffff : kAllLanes, 1);
}

__global__ void mask_without_caller(int* out) { out[threadIdx.x] = __any_sync(0x00ff, 1); }

__global__ void last_block() {
  if (blockIdx.x == gridDim.x - 1 && blockIdx.y == gridDim.y - 1) __any_sync(1, threadIdx.y);
}

__global__ void warp_waits_for_barrier(int* out) {
  if (threadIdx.x % 32 < 16) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = 1;
}

__global__ void two_barriers(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void read_exited_lane(int* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 5);
}

__global__ void read_unnamed_lane(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_down_sync(0x00ff, 1, 1);
}

__global__ void bad_width(int* out) { out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0, 12); }

__global__ void write_at(int element) {
  DYNAMIC_SHARED(float, values);
  values[element] = 0;
}

__global__ void copy_without_wait(const void* source) {
  DYNAMIC_SHARED(unsigned char, shared);
  fastmmoe::copy_async_16(shared, source);
  fastmmoe::copy_async_commit();
}

// Out [3, 8]: eight floats when none, one and both of two copies were waited for; the second copy fills with
// zeros.
__global__ void copy_late(const float* source, float* out) {
  DYNAMIC_SHARED(float, shared);
  fastmmoe::copy_async_16(shared, source);
  fastmmoe::copy_async_commit();
  fastmmoe::copy_async_16(shared + 4, nullptr, false);
  fastmmoe::copy_async_commit();
  fastmmoe::copy_async_wait<2>();
  for (int i = 0; i < 8; ++i) out[i] = shared[i];
  fastmmoe::copy_async_wait<1>();
  for (int i = 0; i < 8; ++i) out[8 + i] = shared[i];
  fastmmoe::copy_async_wait_all();
  for (int i = 0; i < 8; ++i) out[16 + i] = shared[i];
}

__global__ void copy_misaligned(const void* source) {
  DYNAMIC_SHARED(unsigned char, shared);
  fastmmoe::copy_async_16(shared + 8, source);
}

__global__ void copy_to_global(const void* source, void* target) { fastmmoe::copy_async_16(target, source); }

__global__ void load_from_global(const void* source) {
  uint32_t fragment[4];
  fastmmoe::load_matrix(fragment, source);
}

__global__ void multiply_without_lane(float* out) {
  if (threadIdx.x == 31) return;
  const uint32_t a[4] = {};
  float d[4] = {};
  fastmmoe::multiply_f16(d, a, 0, 0);
  out[threadIdx.x] = d[0];
}

__global__ void large_locals(int* out, int bytes) {
  if (threadIdx.x == 0) return;
  volatile char* locals = static_cast<volatile char*>(__builtin_alloca(static_cast<size_t>(bytes)));
  for (int i = 0; i < bytes; ++i) locals[i] = 1;
  out[0] = locals[bytes - 1];
}

__global__ void throwing() {
#ifdef FASTMMOE_EMULATOR
  throw std::length_error("no room");
#endif
}

__global__ void empty() {}

template <typename... Parameters, typename... Arguments>
const char* run(const char* name, void (*kernel)(Parameters...), int threads, Arguments... arguments) {
  return guarded([&] {
    fastmmoe::launch_kernel(name, kernel, LaunchConfig{dim3(1), dim3(threads), kSharedFloats * sizeof(float)},
                            nullptr, arguments...);
  });
}

}  // namespace

#define RUN(kernel, ...) run(#kernel, kernel, __VA_ARGS__)

EXPORT const char* run_missing_barrier(float* out) { return RUN(missing_barrier, kSharedFloats, out); }
EXPORT const char* run_unwritten_shared(float* out, int blocks) {
  return guarded(
      [&] { LAUNCH_KERNEL(unwritten_shared, LaunchConfig{dim3(blocks), dim3(1), 64}, nullptr, out); });
}
EXPORT const char* run_unwritten_local(int* out, int count) { return RUN(unwritten_local, 1, out, count); }
EXPORT const char* run_two_functions(int* out) { return RUN(two_functions, 64, out); }
EXPORT const char* run_two_masks(int* out) { return RUN(two_masks, 64, out); }
EXPORT const char* run_mask_without_caller(int* out) { return RUN(mask_without_caller, 32, out); }
EXPORT const char* run_last_block() {
  return guarded([] { LAUNCH_KERNEL(last_block, LaunchConfig{dim3(3, 2), dim3(1, 2)}, nullptr); });
}
EXPORT const char* run_warp_waits_for_barrier(int* out) { return RUN(warp_waits_for_barrier, 64, out); }
EXPORT const char* run_two_barriers(int* out) { return RUN(two_barriers, 64, out); }
EXPORT const char* run_read_exited_lane(int* out) { return RUN(read_exited_lane, 32, out); }
EXPORT const char* run_read_unnamed_lane(int* out) { return RUN(read_unnamed_lane, 32, out); }
EXPORT const char* run_bad_width(int* out) { return RUN(bad_width, 32, out); }
EXPORT const char* run_write_at(int element) { return RUN(write_at, 1, element); }
EXPORT const char* run_copy_without_wait(const void* source) { return RUN(copy_without_wait, 1, source); }
EXPORT const char* run_copy_late(const float* source, float* out) { return RUN(copy_late, 1, source, out); }
EXPORT const char* run_copy_misaligned(const void* source) { return RUN(copy_misaligned, 1, source); }
EXPORT const char* run_copy_to_global(const void* source, void* target) {
  return RUN(copy_to_global, 1, source, target);
}
EXPORT const char* run_load_from_global(const void* source) { return RUN(load_from_global, 32, source); }
EXPORT const char* run_multiply_without_lane(float* out) { return RUN(multiply_without_lane, 32, out); }
EXPORT const char* run_large_locals(int* out, int bytes) { return RUN(large_locals, 2, out, bytes); }
EXPORT const char* run_throwing() { return RUN(throwing, 1); }
EXPORT const char* run_empty(int grid_x, int grid_y, int block_x, int block_y, int block_z,
                             int shared_bytes) {
  return guarded([&] {
    const LaunchConfig config{dim3(grid_x, grid_y), dim3(block_x, block_y, block_z),
                              static_cast<size_t>(shared_bytes)};
    LAUNCH_KERNEL(empty, config, nullptr);
  });
}
