// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <onnxruntime_cxx_api.h>

namespace fastmmoe {

/// The operators, which live as long as the process.
const OrtCustomOp* sparse_moe_op();
const OrtCustomOp* token_prune_op();

}  // namespace fastmmoe
