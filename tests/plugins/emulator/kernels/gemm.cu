// SPDX-License-Identifier: Apache-2.0
// C [M, N] = A [M, K] B, row-major, with a ring of cp.async stages, ldmatrix and mma. B is [K, N] for half,
// so that ldmatrix transposes, and [N, K] for bfloat16 and int8. K and N are multiples of 16 bytes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/cuda/launch.h"
#include "common/cuda/ptx.cuh"
#include "testing/emulator/entry.h"

namespace {

using fastmmoe::copy_async_16;

constexpr int kTile = 64;                 // rows and columns of C for a block
constexpr int kDepthBytes = 64;           // of K for a stage
constexpr int kPitch = kDepthBytes + 16;  // rows that lie 16 bytes apart need no two accesses to a bank
constexpr int kStages = 3;
constexpr int kThreads = 128;  // 2 x 2 warps of 32 x 32 elements

__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  fastmmoe::multiply_f16(d, a, b0, b1);
}
__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  fastmmoe::multiply_bf16(d, a, b0, b1);
}
__device__ void multiply(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int8_t) {
  fastmmoe::multiply_s8(d, a, b0, b1);
}

// Copies a tile of rows x row_bytes; what lies outside of the matrix becomes zeros.
__device__ void copy_tile(unsigned char* tile, int pitch, const void* matrix, int first_row, int first_byte,
                          int rows, int row_bytes, int matrix_rows, int matrix_row_bytes) {
  const int chunks = row_bytes / 16;
  for (int i = threadIdx.x; i < rows * chunks; i += kThreads) {
    const int row = first_row + i / chunks;
    const int byte = first_byte + i % chunks * 16;
    const bool valid = row < matrix_rows && byte < matrix_row_bytes;
    const size_t offset = valid ? static_cast<size_t>(row) * matrix_row_bytes + byte : 0;
    copy_async_16(tile + i / chunks * pitch + i % chunks * 16,
                  static_cast<const unsigned char*>(matrix) + offset, valid);
  }
}

template <typename Element, bool kTransposeB>
struct Problem {
  static constexpr int kSize = sizeof(Element);
  static constexpr int kDepth = kDepthBytes / kSize;
  static constexpr int kPitchB = kTransposeB ? kTile * kSize + 16 : kPitch;
  static constexpr int kBytesA = kTile * kPitch;
  static constexpr int kStageBytes = kBytesA + (kTransposeB ? kDepth : kTile) * kPitchB;
  const Element* a;
  const Element* b;
  int rows, columns, depth;

  __device__ void load(unsigned char* stage, int step) const {
    const int row = blockIdx.y * kTile, column = blockIdx.x * kTile, byte = step * kDepthBytes;
    copy_tile(stage, kPitch, a, row, byte, kTile, kDepthBytes, rows, depth * kSize);
    if (kTransposeB) {
      copy_tile(stage + kBytesA, kPitchB, b, step * kDepth, column * kSize, kDepth, kTile * kSize, depth,
                columns * kSize);
    } else {
      copy_tile(stage + kBytesA, kPitchB, b, column, byte, kTile, kDepthBytes, columns, depth * kSize);
    }
  }

  // Adds the product of the tiles of one stage to the 32 x 32 elements of a warp.
  template <typename Sum>
  __device__ static void add(const unsigned char* stage, int row, int column, Sum (&sums)[2][4][4]) {
    const int lane = threadIdx.x % 32;
    for (int byte = 0; byte < kDepthBytes; byte += 32) {
      uint32_t a[2][4], b[2][4];
      for (int i = 0; i < 2; ++i) {
        fastmmoe::load_matrix(a[i], stage + (row + i * 16 + lane % 16) * kPitch + byte + lane / 16 * 16);
        const unsigned char* tile = stage + kBytesA;
        if (kTransposeB) {
          const int k = byte / kSize + lane % 16, n = column + i * 16 + lane / 16 * 8;
          fastmmoe::load_matrix<true>(b[i], tile + k * kPitchB + n * kSize);
        } else {
          const int n = column + i * 16 + lane % 8 + lane / 16 * 8;
          fastmmoe::load_matrix(b[i], tile + n * kPitchB + byte + lane / 8 % 2 * 16);
        }
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          multiply(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], Element{});
        }
      }
    }
  }

  template <typename Sum>
  __device__ void store(Sum* c, int warp_row, int warp_column, const Sum (&sums)[2][4][4]) const {
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 2 * 4 * 4; ++i) {
      const int row = blockIdx.y * kTile + warp_row + i / 16 * 16 + lane / 4 + i % 4 / 2 * 8;
      const int column = blockIdx.x * kTile + warp_column + i / 4 % 4 * 8 + lane % 4 * 2 + i % 2;
      if (row < rows && column < columns) {
        c[static_cast<size_t>(row) * columns + column] = sums[i / 16][i / 4 % 4][i % 4];
      }
    }
  }
};

template <typename Element, typename Sum, bool kTransposeB, bool kWait>
__global__ void __launch_bounds__(kThreads) gemm(Problem<Element, kTransposeB> problem, Sum* c) {
  constexpr int kStageBytes = Problem<Element, kTransposeB>::kStageBytes;
  constexpr int kDepth = Problem<Element, kTransposeB>::kDepth;
  DYNAMIC_SHARED(unsigned char, shared);
  const int warp = threadIdx.x / 32;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
  Sum sums[2][4][4] = {};
  const int steps = (problem.depth + kDepth - 1) / kDepth;
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) problem.load(shared + step * kStageBytes, step);
    fastmmoe::copy_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    if (kWait) fastmmoe::copy_async_wait<kStages - 2>();
    __syncthreads();
    const int next = step + kStages - 1;
    if (next < steps) problem.load(shared + next % kStages * kStageBytes, next);
    fastmmoe::copy_async_commit();
    problem.add(shared + step % kStages * kStageBytes, warp_row, warp_column, sums);
  }
  fastmmoe::copy_async_wait_all();
  problem.store(c, warp_row, warp_column, sums);
}

template <typename Element, typename Sum, bool kTransposeB, bool kWait = true>
const char* run(const void* a, const void* b, void* c, int rows, int columns, int depth) {
  return fastmmoe::emulator::guarded([&] {
    using Inputs = Problem<Element, kTransposeB>;
    const Inputs problem{static_cast<const Element*>(a), static_cast<const Element*>(b), rows, columns,
                         depth};
    fastmmoe::LaunchConfig config;
    config.grid = dim3((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile);
    config.block = dim3(kThreads);
    config.shared_bytes = kStages * Inputs::kStageBytes;
    LAUNCH_KERNEL((gemm<Element, Sum, kTransposeB, kWait>), config, nullptr, problem, static_cast<Sum*>(c));
  });
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* gemm_f16(const void* a, const void* b, void* c, int rows, int columns, int depth) {
  return run<__half, float, true>(a, b, c, rows, columns, depth);
}
EXPORT const char* gemm_bf16(const void* a, const void* b, void* c, int rows, int columns, int depth) {
  return run<__nv_bfloat16, float, false>(a, b, c, rows, columns, depth);
}
EXPORT const char* gemm_s8(const void* a, const void* b, void* c, int rows, int columns, int depth) {
  return run<int8_t, int32_t, false>(a, b, c, rows, columns, depth);
}
EXPORT const char* gemm_f16_without_wait(const void* a, const void* b, void* c, int rows, int columns,
                                         int depth) {
  return run<__half, float, true, false>(a, b, c, rows, columns, depth);
}
