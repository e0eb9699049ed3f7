// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <onnxruntime_cxx_api.h>

#include "contract/contract.h"

namespace fastmmoe {

/// Whether the contract alone does not say the type at some place among a node's outputs.
bool has_inferred_outputs(const OpContract& contract);

/// Tells ONNX Runtime type and shape of every output of a node, from its attributes and inputs; of operators
/// with one name and several types ONNX Runtime asks only one. A dimension that the inputs do not tell gets a
/// name of its own. Throws CheckError for attributes that the contract does not allow.
void infer_outputs(const OpContract& contract, OrtShapeInferContext* context);

}  // namespace fastmmoe
