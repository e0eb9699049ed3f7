// SPDX-License-Identifier: Apache-2.0
// A node of FmmVisionAttention: its inputs and outputs as parameters of the kernel.
#pragma once

#include <vector>

#include "contract/tables.h"
#include "vision_attention/params.h"

namespace fastmmoe::vision_attention {

/// Sizes B, T, N and D. Throws CheckError for inputs that the contract does not allow.
Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs);

/// The parameters of a node whose inputs have passed check_inputs.
VisionAttentionParams make_params(const NodeAttributes& node, const Sizes& sizes, const float* qkv,
                                  float* output);

}  // namespace fastmmoe::vision_attention
