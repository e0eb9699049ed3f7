// SPDX-License-Identifier: Apache-2.0
// All inline PTX of the project (compute capability 8.0), with what the emulator does instead beside each
// function. No other file holds asm.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef FASTMMOE_EMULATOR
#include "testing/emulator/emulator.h"
#define FASTMMOE_SITE , emulator::Site site = emulator::Site::here()
#else
#define FASTMMOE_SITE
#endif

namespace fastmmoe {

#ifndef FASTMMOE_EMULATOR
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

/// Of bytes 0 to 3 in a and 4 to 7 in b: digit i of the selector, 0 to 7, says which becomes byte i.
__device__ __forceinline__ uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef FASTMMOE_EMULATOR
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t selected = 0;
  for (unsigned i = 0; i < 4; ++i) {
    selected |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return selected;
#else
  return __byte_perm(a, b, selector);
#endif
}

/// (value & mask) | bits, as one operation: nvcc alone makes two of it where mask and bits are constants.
__device__ __forceinline__ uint32_t mask_and_set(uint32_t value, uint32_t mask, uint32_t bits) {
#ifdef FASTMMOE_EMULATOR
  return (value & mask) | bits;
#else
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(result) : "r"(value), "r"(mask), "r"(bits));
  return result;
#endif
}

/// 2 to this power, to about 22 bits; results below the least normal number are 0.
__device__ __forceinline__ float power_of_two(float exponent) {
#ifdef FASTMMOE_EMULATOR
  return std::exp2(exponent);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(exponent));
  return result;
#endif
}

/// Starts to copy 16 bytes from global to shared memory, both aligned to 16; zeros where not valid, `global`
/// is then not read. Every thread waits for its own copies, a barrier then shows them to the others.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global,
                                              bool valid = true FASTMMOE_SITE) {
#ifdef FASTMMOE_EMULATOR
  emulator::copy_async(shared, global, valid, site);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#endif
}

/// Closes the group of the copies started since the last call; a group may be empty.
__device__ __forceinline__ void copy_async_commit() {
#ifdef FASTMMOE_EMULATOR
  emulator::copy_async_commit();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

/// Waits until at most the newest kPending groups of this thread have not landed.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
#ifdef FASTMMOE_EMULATOR
  emulator::copy_async_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

/// Waits for all copies of this thread, in a group or not.
__device__ __forceinline__ void copy_async_wait_all() {
#ifdef FASTMMOE_EMULATOR
  emulator::copy_async_commit();
  emulator::copy_async_wait(0);
#else
  asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}

/// Loads 1, 2 or 4 matrices of 8 x 8 16-bit elements from shared memory, one to a register. Lane 8 m + r
/// passes the address of row r of matrix m (16 bytes, aligned; lanes beyond the last matrix pass anything).
/// Lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, or with kTranspose of column l / 4.
template <bool kTranspose = false>
__device__ __forceinline__ void load_matrix(uint32_t (&fragment)[1], const void* row FASTMMOE_SITE) {
#ifdef FASTMMOE_EMULATOR
  emulator::load_matrix(fragment, 1, kTranspose, row, site);
#else
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];\n"
                 : "=r"(fragment[0])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n"
                 : "=r"(fragment[0])
                 : "r"(shared_address(row))
                 : "memory");
  }
#endif
}

template <bool kTranspose = false>
__device__ __forceinline__ void load_matrix(uint32_t (&fragment)[2], const void* row FASTMMOE_SITE) {
#ifdef FASTMMOE_EMULATOR
  emulator::load_matrix(fragment, 2, kTranspose, row, site);
#else
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(fragment[0]), "=r"(fragment[1])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(fragment[0]), "=r"(fragment[1])
                 : "r"(shared_address(row))
                 : "memory");
  }
#endif
}

template <bool kTranspose = false>
__device__ __forceinline__ void load_matrix(uint32_t (&fragment)[4], const void* row FASTMMOE_SITE) {
#ifdef FASTMMOE_EMULATOR
  emulator::load_matrix(fragment, 4, kTranspose, row, site);
#else
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
#endif
}

// D += A B for one warp. Fragments, with g = lane / 4 and t = lane % 4, p elements to a register (2 or 4):
// a[i] row g + 8 (i % 2), columns p t + 4 p (i / 2) on; b_i column g, rows p t + 4 p i on; d[i] row g + 8 (i
// / 2), column 2 t + i % 2.

/// A [16, 16] and B [16, 8] half, D [16, 8] float.
__device__ __forceinline__ void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1 FASTMMOE_SITE) {
#ifdef FASTMMOE_EMULATOR
  emulator::multiply_f16(d, a, b0, b1, site);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/// A [16, 16] and B [16, 8] bfloat16, D [16, 8] float.
__device__ __forceinline__ void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1 FASTMMOE_SITE) {
#ifdef FASTMMOE_EMULATOR
  emulator::multiply_bf16(d, a, b0, b1, site);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/// A [16, 32] and B [32, 8] int8, D [16, 8] int32 that wraps around.
__device__ __forceinline__ void multiply_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1 FASTMMOE_SITE) {
#ifdef FASTMMOE_EMULATOR
  emulator::multiply_s8(d, a, b0, b1, site);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace fastmmoe

#undef FASTMMOE_SITE
