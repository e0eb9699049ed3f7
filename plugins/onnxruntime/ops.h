// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <onnxruntime_cxx_api.h>

#include <vector>

namespace fastmmoe {

/// The operators of a library, one for each type that F may have there. They live as long as the process.
std::vector<const OrtCustomOp*> sparse_moe_ops();
std::vector<const OrtCustomOp*> token_prune_ops();
std::vector<const OrtCustomOp*> attention_ops();

}  // namespace fastmmoe
