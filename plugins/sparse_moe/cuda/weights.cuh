// SPDX-License-Identifier: Apache-2.0
// The weights of an expert.
#pragma once

#include "common/cuda/dequantise.cuh"
#include "sparse_moe/cuda/device.cuh"

namespace fastmmoe::sparse_moe {

template <typename Format>
__device__ Matrix<Format> gate_up_of(const SparseMoeKernelParams& params, int expert) {
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  return {params.gate_up,
          params.gate_up_scale,
          params.gate_up_zero,
          expert * 2 * I,
          H,
          static_cast<int>(params.attributes.group_size)};
}

template <typename Format>
__device__ Matrix<Format> down_of(const SparseMoeKernelParams& params, int expert) {
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  return {params.down,
          params.down_scale,
          params.down_zero,
          expert * H,
          I,
          static_cast<int>(params.attributes.group_size)};
}

}  // namespace fastmmoe::sparse_moe
