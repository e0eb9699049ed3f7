// SPDX-License-Identifier: Apache-2.0
#include "linear/cuda/products.cuh"

namespace fastmmoe::linear {

void launch_int4_products(const LinearKernelParams& params, cudaStream_t stream) {
  launch_format<Int4Weights>(params, stream);
}

}  // namespace fastmmoe::linear
