// SPDX-License-Identifier: Apache-2.0
#include "linear/cuda/products.cuh"

namespace fastmmoe::linear {

void launch_int8_products(const LinearKernelParams& params, cudaStream_t stream) {
  launch_format<Int8Weights>(params, stream);
}

}  // namespace fastmmoe::linear
