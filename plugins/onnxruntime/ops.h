// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <onnxruntime_cxx_api.h>

#include <vector>

namespace fastmmoe {

/// The kernels of an operator, one for each type that F may have in a library. They live as long as the
/// process. is_exact: they compute in float where they would else round what they multiply (register.cpp).
std::vector<const OrtCustomOp*> sparse_moe_ops(bool is_exact);
std::vector<const OrtCustomOp*> token_prune_ops();
std::vector<const OrtCustomOp*> attention_ops();
std::vector<const OrtCustomOp*> vision_attention_ops(bool is_exact);
std::vector<const OrtCustomOp*> linear_ops(bool is_exact);
std::vector<const OrtCustomOp*> rotary_ops();

/// All that a library has.
std::vector<const OrtCustomOp*> library_ops(bool is_exact);

}  // namespace fastmmoe
