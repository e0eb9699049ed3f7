// SPDX-License-Identifier: Apache-2.0
// The matrix instructions on registers that the caller gives and gets, for tests of their layouts.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/cuda/launch.h"
#include "common/cuda/ptx.cuh"
#include "testing/emulator/entry.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using fastmmoe::LaunchConfig;
using fastmmoe::emulator::guarded;

// fragments [32, kCount] of the rows [8 kCount, 8] of 16-bit elements.
template <int kCount, bool kTranspose>
__global__ void load(const uint16_t* rows, uint32_t* fragments) {
  __shared__ __align__(16) uint16_t shared[8 * kCount * 8];
  for (int i = threadIdx.x; i < 8 * kCount * 8; i += 32) shared[i] = rows[i];
  __syncthreads();
  uint32_t fragment[kCount];
  fastmmoe::load_matrix<kTranspose>(fragment, shared + threadIdx.x % (8 * kCount) * 8);
  for (int i = 0; i < kCount; ++i) fragments[threadIdx.x * kCount + i] = fragment[i];
}

__device__ void multiply_as(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b, __half) {
  fastmmoe::multiply_f16(d, a, b[0], b[1]);
}
__device__ void multiply_as(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b, __nv_bfloat16) {
  fastmmoe::multiply_bf16(d, a, b[0], b[1]);
}
__device__ void multiply_as(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t* b, int8_t) {
  fastmmoe::multiply_s8(d, a, b[0], b[1]);
}

// d [32, 4] += a [32, 4] b [32, 2], registers of each lane.
template <typename Element, typename Sum>
__global__ void multiply(const uint32_t* a, const uint32_t* b, Sum* d) {
  const int lane = threadIdx.x;
  uint32_t fragment[4];
  Sum sums[4];
  for (int i = 0; i < 4; ++i) {
    fragment[i] = a[4 * lane + i];
    sums[i] = d[4 * lane + i];
  }
  multiply_as(sums, fragment, b + 2 * lane, Element{});
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = sums[i];
}

template <int kCount>
const char* run_load(const uint16_t* rows, uint32_t* fragments, bool transpose) {
  return guarded([&] {
    const auto kernel = transpose ? load<kCount, true> : load<kCount, false>;
    LAUNCH_KERNEL(kernel, LaunchConfig{dim3(1), dim3(32)}, nullptr, rows, fragments);
  });
}

template <typename Element, typename Sum>
const char* run_multiply(const uint32_t* a, const uint32_t* b, Sum* d) {
  return guarded(
      [&] { LAUNCH_KERNEL((multiply<Element, Sum>), LaunchConfig{dim3(1), dim3(32)}, nullptr, a, b, d); });
}

}  // namespace

EXPORT const char* load_x1(const uint16_t* rows, uint32_t* fragments, int transpose) {
  return run_load<1>(rows, fragments, transpose != 0);
}
EXPORT const char* load_x2(const uint16_t* rows, uint32_t* fragments, int transpose) {
  return run_load<2>(rows, fragments, transpose != 0);
}
EXPORT const char* load_x4(const uint16_t* rows, uint32_t* fragments, int transpose) {
  return run_load<4>(rows, fragments, transpose != 0);
}
EXPORT const char* multiply_f16(const uint32_t* a, const uint32_t* b, float* d) {
  return run_multiply<__half>(a, b, d);
}
EXPORT const char* multiply_bf16(const uint32_t* a, const uint32_t* b, float* d) {
  return run_multiply<__nv_bfloat16>(a, b, d);
}
EXPORT const char* multiply_s8(const uint32_t* a, const uint32_t* b, int32_t* d) {
  return run_multiply<int8_t>(a, b, d);
}
