// SPDX-License-Identifier: Apache-2.0
// The two projections of the experts. Each format of weights is compiled by itself, which lets a build run in
// parallel.
#pragma once

#include <cuda_runtime_api.h>

#include "sparse_moe/cuda/device.cuh"

namespace fastmmoe::sparse_moe {

/// Rows of a tile: for few rows an expert, for some, and for many with weights of type F. The kernels for few
/// tokens have others.
constexpr int kSmallTileRows = 16, kMediumTileRows = 64, kLargeTileRows = 128;

/// From hidden_states and the sorted slots to `weighted`, or with up to kDecodeTokens tokens to output.
void launch_float_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream);
void launch_int8_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream);
void launch_int4_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream);
void launch_fp8_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream);

}  // namespace fastmmoe::sparse_moe
