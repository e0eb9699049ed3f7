// SPDX-License-Identifier: Apache-2.0
// A node of FmmRotary: its attributes and what its inputs must be.
#pragma once

#include <vector>

#include "contract/tables.h"

namespace fastmmoe::rotary {

/// Throws CheckError for attributes that are legal one by one but not together.
void check_attributes(const NodeAttributes& node);

/// Sizes T, N and P. Throws CheckError for inputs that the contract does not allow.
Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs);

}  // namespace fastmmoe::rotary
