// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cuda/experts.cuh"

namespace fastmmoe::sparse_moe {

void launch_float_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  launch_format<FloatWeights>(params, work, stream);
}

}  // namespace fastmmoe::sparse_moe
