// SPDX-License-Identifier: Apache-2.0
#include "vision_attention/node.h"

namespace fastmmoe::vision_attention {

Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs) {
  return bind_inputs(node, inputs);
}

VisionAttentionParams make_params(const NodeAttributes& node, const Sizes& sizes, const float* qkv,
                                  float* output) {
  return {node.number(kScale), compute_of(node), sizes['B'], sizes['T'], sizes['N'], sizes['D'], qkv, output};
}

}  // namespace fastmmoe::vision_attention
