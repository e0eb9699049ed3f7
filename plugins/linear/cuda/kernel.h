// SPDX-License-Identifier: Apache-2.0
// FmmLinear on CUDA: weights of 8 or 4 bits. Products with floating-point weights are the frameworks' own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/cuda/products.h"
#include "common/half.h"
#include "linear/params.h"

namespace fastmmoe {

/// N is a multiple of this: a thread stores two neighbours of a row at once.
constexpr int64_t kLinearOutputs = 2;

/// Row-major arrays without gaps in device memory, those of type F and the weights aligned to 16 bytes; the
/// sizes are known on the host. K is a multiple of kProductDepth, with int4 of kInt4ProductDepth. The caller
/// has checked the attributes, whose layout is kLogical. g is attributes.group_size; int4 weights are packed
/// as exporter/ops/quantise.py says.
struct LinearKernelParams {
  LinearAttributes attributes;
  FloatType type;  // F: kFloat16 or kBfloat16
  int64_t T, K, N;
  const void* x;         // [T, K] F
  const void* weight;    // [N, K] int8, or [N, K / 2] int4
  const void* bias;      // [N] F, or null
  const void* scale;     // [N, ceil(K / g)] float16
  const int8_t* zero;    // like scale; null without zero_points
  const void* residual;  // [T, N] F, or null
  void* y;               // [T, N] F
};

/// Throws CheckError for sizes or types that launch_linear cannot take.
void check_linear(const LinearKernelParams& params);

/// Writes y by one kernel on `stream`, without waiting for it, and needs no workspace. Results are the same
/// bit for bit on every run; a row does not depend on the others, but the last bits of all rows may depend on
/// how many there are.
///
/// Weights are rounded to F once, as scale (q - zero). Sums, bias, activation and residual are float; the
/// result is rounded to F once. Throws CheckError for sizes or types it cannot take; a failed launch throws
/// what launch.h says.
void launch_linear(const LinearKernelParams& params, cudaStream_t stream);

}  // namespace fastmmoe
