// SPDX-License-Identifier: Apache-2.0
// A node of FmmTokenPrune, for every framework: its attributes and what its inputs must be.
#pragma once

#include <vector>

#include "contract/tables.h"
#include "token_prune/params.h"

namespace fastmmoe::token_prune {

TokenPruneAttributes read_attributes(const NodeAttributes& node);

/// Sizes B, T, V, K, M, H and E. Throws CheckError for inputs, in the node's order, that the contract does
/// not allow, and for more slots than the method allows.
Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs);

/// For offsets [B + 1] in host memory, after check_inputs. Throws CheckError unless they lead from 0 to V, K
/// and M without descending and give no sequence more slots than the method allows; where K = V merge slots
/// are not counted.
void check_offsets(const NodeAttributes& node, const Sizes& sizes, const int32_t* visual_offsets,
                   const int32_t* keep_offsets, const int32_t* merge_offsets);

}  // namespace fastmmoe::token_prune
