// SPDX-License-Identifier: Apache-2.0
// The operators of the library for ONNX Runtime's CUDA provider.
#include "onnxruntime/ops.h"

namespace fastmmoe {

std::vector<const OrtCustomOp*> library_ops(bool is_exact) {
  std::vector<const OrtCustomOp*> found;
  for (const auto& ops :
       {sparse_moe_ops(is_exact), token_prune_ops(), attention_ops(), linear_ops(is_exact)}) {
    found.insert(found.end(), ops.begin(), ops.end());
  }
  return found;
}

}  // namespace fastmmoe
