// SPDX-License-Identifier: Apache-2.0
// The two projections of the experts. Each format of weights is compiled by itself, which lets a build run in
// parallel.
#pragma once

#include <cuda_runtime_api.h>

#include "sparse_moe/cuda/device.cuh"

namespace fastmmoe::sparse_moe {

/// From hidden_states and the sorted slots to `weighted`, or with up to kDecodeTokens tokens to output.
void launch_float_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream);
void launch_int8_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream);
void launch_int4_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream);
void launch_fp8_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream);

}  // namespace fastmmoe::sparse_moe
