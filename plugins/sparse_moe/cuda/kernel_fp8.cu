// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cuda/experts.cuh"

namespace fastmmoe::sparse_moe {

void launch_fp8_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  launch_format<Fp8Weights>(params, work, stream);
}

}  // namespace fastmmoe::sparse_moe
