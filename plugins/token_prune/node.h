// SPDX-License-Identifier: Apache-2.0
// A node of FmmTokenPrune, for every framework: its attributes and what its inputs must be.
#pragma once

#include <vector>

#include "contract/tables.h"
#include "token_prune/params.h"

namespace fastmmoe::token_prune {

TokenPruneAttributes read_attributes(const NodeAttributes& node);

/// Sizes T, V, K, M, H and E. Throws CheckError for inputs, in the node's order, that the contract does not
/// allow, and for more slots than the method allows.
Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs);

}  // namespace fastmmoe::token_prune
