// SPDX-License-Identifier: Apache-2.0
// The operators of the library for ONNX Runtime's CPU provider.
#include "common/processor.h"
#include "onnxruntime/ops.h"

namespace fastmmoe {

std::vector<const OrtCustomOp*> library_ops(bool is_exact) {
  isa_of_this_cpu();  // refuses a name that is none when the library is loaded, not in the first step
  std::vector<const OrtCustomOp*> found;
  for (const auto& ops : {sparse_moe_ops(is_exact), token_prune_ops(), attention_ops(),
                          vision_attention_ops(is_exact), linear_ops(is_exact), rotary_ops()}) {
    found.insert(found.end(), ops.begin(), ops.end());
  }
  return found;
}

}  // namespace fastmmoe
