// SPDX-License-Identifier: Apache-2.0
// The products. Each format of weights is compiled by itself, which lets a build run in parallel.
#pragma once

#include <cuda_runtime_api.h>

#include "linear/cuda/kernel.h"

namespace fastmmoe::linear {

/// From x to y.
void launch_int8_products(const LinearKernelParams& params, cudaStream_t stream);
void launch_int4_products(const LinearKernelParams& params, cudaStream_t stream);

}  // namespace fastmmoe::linear
