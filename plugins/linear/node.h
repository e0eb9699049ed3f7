// SPDX-License-Identifier: Apache-2.0
// A node of FmmLinear, for every framework: its attributes and what its inputs must be.
#pragma once

#include <vector>

#include "contract/tables.h"
#include "linear/params.h"

namespace fastmmoe::linear {

/// Throws CheckError for attributes that are legal one by one but not together.
LinearAttributes read_attributes(const NodeAttributes& node);

/// Throws CheckError for weights that have no CUDA kernel: those in tile order, and floating-point ones.
void check_packed_rows(const NodeAttributes& node);

/// Sizes T, K and N. Throws CheckError for inputs, in the node's order, that the contract does not allow.
Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs);

}  // namespace fastmmoe::linear
