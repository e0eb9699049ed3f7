// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "contract/float_type.h"
#include "sparse_moe/kernel.h"
#include "sparse_moe/node.h"

namespace fastmmoe::sparse_moe {

/// The parameters of a node whose inputs have passed check_inputs, all but the output. data(input): the
/// input's device memory, null where the node has no such input.
template <typename Data>
SparseMoeKernelParams kernel_params(const NodeAttributes& node, const std::vector<TensorInfo>& inputs,
                                    const Sizes& sizes, const Data& data) {
  SparseMoeKernelParams params{};
  params.attributes = read_attributes(node);
  params.type = float_type(inputs[node.position(kHiddenStates)].type);
  params.T = sizes['T'];
  params.V = sizes['V'];
  params.H = sizes['H'];
  params.I = sizes['I'];
  params.E = sizes['E'];
  params.hidden_states = data(kHiddenStates);
  params.router_logits = static_cast<const float*>(data(kRouterLogits));
  params.visual_index = static_cast<const int32_t*>(data(kVisualIndex));
  params.visual_top_k = static_cast<const int32_t*>(data(kVisualTopK));
  params.correction_bias = static_cast<const float*>(data(kCorrectionBias));
  params.gate_up = data(kGateUp);
  params.down = data(kDown);
  params.gate_up_bias = data(kGateUpBias);
  params.down_bias = data(kDownBias);
  params.gate_up_scale = data(kGateUpScale);
  params.down_scale = data(kDownScale);
  params.gate_up_zero = static_cast<const int8_t*>(data(kGateUpZero));
  params.down_zero = static_cast<const int8_t*>(data(kDownZero));
  return params;
}

}  // namespace fastmmoe::sparse_moe
