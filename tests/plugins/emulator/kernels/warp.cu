// SPDX-License-Identifier: Apache-2.0
// Warp functions, block barriers and atomics in the patterns kernels use.
#include <cstdint>

#include "common/cuda/launch.h"
#include "testing/emulator/entry.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using fastmmoe::LaunchConfig;
using fastmmoe::emulator::guarded;

constexpr unsigned kAllLanes = 0xffffffff;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// norms [rows] of x [rows, columns], one block a row.
__global__ void row_norms(const float* x, float* norms, int columns) {
  __shared__ float warp_sums[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sum = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) {
    const float value = x[static_cast<size_t>(blockIdx.x) * columns + i];
    sum += value * value;
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (lane == 0) warp_sums[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    sum = lane < kWarps ? warp_sums[lane] : 0;
    for (int step = kWarps / 2; step > 0; step /= 2) sum += __shfl_down_sync(kAllLanes, sum, step);
    if (lane == 0) norms[blockIdx.x] = sqrtf(sum);
  }
}

// sums [count] inclusive, one block; count is at most the number of threads.
__global__ void scan(const int* x, int* sums, int count) {
  __shared__ int totals[32];
  const int i = threadIdx.x, warp = i / 32, lane = i % 32;
  int sum = i < count ? x[i] : 0;
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == 31) totals[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += totals[w];
  if (i < count) sums[i] = sum;
}

// Indices of values above the threshold in any order, and how many.
__global__ void compact(const float* x, int* indices, int* found, int count, float threshold) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const bool wanted = i < count && x[i] > threshold;
  const unsigned votes = __ballot_sync(kAllLanes, wanted);
  const unsigned lane = threadIdx.x % 32;
  int first = lane == 0 ? atomicAdd(found, __popc(votes)) : 0;
  first = __shfl_sync(kAllLanes, first, 0);
  if (wanted) indices[first + __popc(votes & ((1u << lane) - 1))] = i;
}

// out [8, 32]: the four shuffles in segments of `width`, any, all, match and the sum over each half warp.
__global__ void warp_functions(const int* x, int n, int width, int* out) {
  const int lane = threadIdx.x;
  const int value = x[lane];
  out[0 * 32 + lane] = __shfl_sync(kAllLanes, value, n, width);
  out[1 * 32 + lane] = __shfl_up_sync(kAllLanes, value, n, width);
  out[2 * 32 + lane] = __shfl_down_sync(kAllLanes, value, n, width);
  out[3 * 32 + lane] = __shfl_xor_sync(kAllLanes, value, n, width);
  out[4 * 32 + lane] = __any_sync(kAllLanes, value == n);
  out[5 * 32 + lane] = __all_sync(kAllLanes, value != n);
  out[6 * 32 + lane] = static_cast<int>(__match_any_sync(kAllLanes, value));
  // Half warps meet on their own, at two places.
  const unsigned half = lane < 16 ? 0x0000ffff : 0xffff0000;
  if (lane < 16) {
    out[7 * 32 + lane] = __shfl_sync(half, value, 3);
  } else {
    out[7 * 32 + lane] = __shfl_sync(half, value, 20);
  }
  __syncwarp();
}

// out [6]: sum, least and greatest as int and as unsigned.
__global__ void reductions(const int* x, int* out) {
  const int value = x[threadIdx.x];
  const unsigned bits = static_cast<unsigned>(value);
  const int results[] = {__reduce_add_sync(kAllLanes, value),
                         __reduce_min_sync(kAllLanes, value),
                         __reduce_max_sync(kAllLanes, value),
                         static_cast<int>(__reduce_max_sync(kAllLanes, bits)),
                         static_cast<int>(__reduce_and_sync(kAllLanes, bits)),
                         static_cast<int>(__reduce_or_sync(kAllLanes, bits))};
  if (threadIdx.x < 6) out[threadIdx.x] = results[threadIdx.x];
}

// out [4]: how many of the threads that are left after an early exit have x != 0, whether any, whether all,
// votes.
__global__ void early_exit(const int* x, int* out, int count) {
  const int i = threadIdx.x;
  if (i >= count) return;
  const unsigned votes = __ballot_sync(kAllLanes, x[i]);
  const int number = __syncthreads_count(x[i]);
  const int any = __syncthreads_or(x[i]);
  const int all = __syncthreads_and(x[i]);
  if (i == 0) {
    out[0] = number;
    out[1] = any;
    out[2] = all;
    out[3] = static_cast<int>(votes);
  }
}

// Coordinates of each thread in a grid of 3 dimensions, [blocks * threads, 6].
__global__ void coordinates(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  int* row = out + (block * blockDim.x * blockDim.y * blockDim.z + thread) * 6;
  const unsigned values[] = {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z};
  for (int i = 0; i < 6; ++i) row[i] = static_cast<int>(values[i]);
}

// position [blocks]: when each block ran.
__global__ void block_order(int* next, int* position) { position[blockIdx.x] = atomicAdd(next, 1); }

// The last block to finish sums what all blocks wrote; out [0] is that sum, the rest bit operations.
__global__ void atomics(int* partial, unsigned* done, int* out) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    __threadfence();
    is_last = atomicAdd(done, 1) == gridDim.x - 1;
  }
  atomicMax(out + 1, static_cast<int>(threadIdx.x));
  atomicMin(out + 2, -static_cast<int>(threadIdx.x));
  atomicOr(out + 3, 1 << threadIdx.x % 32);
  atomicXor(out + 4, 1 << threadIdx.x % 32);
  atomicCAS(out + 5, 0, 7);
  for (int i = 0; i < 200; ++i) atomicAdd(out + 6, 1);
  __syncthreads();
  if (!is_last || threadIdx.x != 0) return;
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
  out[0] = sum;
}

}  // namespace

EXPORT const char* run_row_norms(const float* x, float* norms, int rows, int columns) {
  return guarded([&] {
    LAUNCH_KERNEL(row_norms, LaunchConfig{dim3(rows), dim3(kThreads)}, nullptr, x, norms, columns);
  });
}
EXPORT const char* run_scan(const int* x, int* sums, int count, int threads) {
  return guarded([&] { LAUNCH_KERNEL(scan, LaunchConfig{dim3(1), dim3(threads)}, nullptr, x, sums, count); });
}
EXPORT const char* run_compact(const float* x, int* indices, int* found, int count, float threshold) {
  return guarded([&] {
    LAUNCH_KERNEL(compact, LaunchConfig{dim3((count + kThreads - 1) / kThreads), dim3(kThreads)}, nullptr, x,
                  indices, found, count, threshold);
  });
}
EXPORT const char* run_warp_functions(const int* x, int n, int width, int* out) {
  return guarded(
      [&] { LAUNCH_KERNEL(warp_functions, LaunchConfig{dim3(1), dim3(32)}, nullptr, x, n, width, out); });
}
EXPORT const char* run_reductions(const int* x, int* out) {
  return guarded([&] { LAUNCH_KERNEL(reductions, LaunchConfig{dim3(1), dim3(32)}, nullptr, x, out); });
}
EXPORT const char* run_early_exit(const int* x, int* out, int count, int threads) {
  return guarded(
      [&] { LAUNCH_KERNEL(early_exit, LaunchConfig{dim3(1), dim3(threads)}, nullptr, x, out, count); });
}
EXPORT const char* run_coordinates(int* out) {
  return guarded(
      [&] { LAUNCH_KERNEL(coordinates, LaunchConfig{dim3(3, 2, 2), dim3(5, 3, 3)}, nullptr, out); });
}
EXPORT const char* run_block_order(int* next, int* position, int blocks) {
  return guarded(
      [&] { LAUNCH_KERNEL(block_order, LaunchConfig{dim3(blocks), dim3(1)}, nullptr, next, position); });
}
EXPORT const char* run_atomics(int* partial, unsigned* done, int* out, int blocks) {
  return guarded(
      [&] { LAUNCH_KERNEL(atomics, LaunchConfig{dim3(blocks), dim3(64)}, nullptr, partial, done, out); });
}
