// SPDX-License-Identifier: Apache-2.0
// A node of FmmSparseMoE, for every framework: its attributes and what its inputs must be.
#pragma once

#include <vector>

#include "contract/tables.h"
#include "sparse_moe/params.h"

namespace fastmmoe::sparse_moe {

/// Throws CheckError for attributes that are legal one by one but not together.
SparseMoeAttributes read_attributes(const NodeAttributes& node);

/// Throws CheckError for weights in tile order: they have no CUDA kernel.
void check_logical(const NodeAttributes& node);

/// Sizes T, V, H, I and E. Throws CheckError for inputs, in the node's order, that the contract does not
/// allow.
Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs);

}  // namespace fastmmoe::sparse_moe
