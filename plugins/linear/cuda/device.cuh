// SPDX-License-Identifier: Apache-2.0
// What the kernels of FmmLinear share: the weights, and what follows the sums.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/cuda/dequantise.cuh"
#include "common/cuda/elements.cuh"
#include "linear/cuda/kernel.h"

namespace fastmmoe::linear {

template <typename Format>
__device__ Matrix<Format> weights_of(const LinearKernelParams& params) {
  return {params.weight,
          params.scale,
          params.zero,
          0,
          static_cast<int>(params.K),
          static_cast<int>(params.attributes.group_size)};
}

__device__ inline float activate(Activation activation, float x) {
  constexpr float kRootOfHalf = 0.70710678f, kRootOfTwoByPi = 0.79788456f, kCubic = 0.044715f;
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * kRootOfHalf));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(kRootOfTwoByPi * (x + kCubic * x * x * x)));
  }
  return x;
}

/// Of a sum, y of this row and column.
template <typename T>
__device__ float finish(const LinearKernelParams& params, int64_t row, int column, float sum) {
  const float activated = activate(params.attributes.activation, sum + bias_at<T>(params.bias, column));
  return activated + bias_at<T>(params.residual, row * params.N + column);
}

}  // namespace fastmmoe::linear
