// SPDX-License-Identifier: Apache-2.0
// What the PTX instructions of common/cuda/ptx.cuh do, for its host fallbacks. PTX ISA, sections on cp.async,
// ldmatrix, and matrix fragments for mma.m16n8k16 and mma.m16n8k32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "testing/emulator/error.h"

namespace fastmmoe::emulator {

/// Issues a copy of 16 bytes; zeros where not valid, the source is then not read.
void copy_async(void* shared, const void* global, bool valid, Site site);
void copy_async_commit();
void copy_async_wait(size_t pending);

/// Loads `count` (1, 2 or 4) matrices of 8 x 8 16-bit elements. Lane 8 m + r passes the address of row r of
/// matrix m; lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, or of column l / 4 where
/// transposed.
void load_matrix(uint32_t* fragment, unsigned count, bool transpose, const void* row, Site site);

/// D += A B with A [16, 16], B [16, 8], D [16, 8]; sums in float.
void multiply_f16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site);
void multiply_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site);
/// D += A B with A [16, 32], B [32, 8], D [16, 8].
void multiply_s8(int32_t* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site);

}  // namespace fastmmoe::emulator
