// SPDX-License-Identifier: Apache-2.0
// A node of FmmAttention, for every framework: its attributes and what its inputs must be.
#pragma once

#include <vector>

#include "attention/params.h"
#include "contract/tables.h"

namespace fastmmoe::attention {

AttentionAttributes read_attributes(const NodeAttributes& node);

/// Sizes A, B, T, N, K, C, D and W. Throws CheckError for inputs, in the node's order, that the contract does
/// not allow.
Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs);

/// For arrays in host memory, after check_inputs. Throws CheckError unless the offsets ascend from 0 to T,
/// the rows between two of them are those of one sequence, no sequence comes twice, and the rows of each fit
/// into its cache.
void check_sequences(const Sizes& sizes, const int32_t* past_lengths, const int32_t* sequence_ids,
                     const int32_t* sequence_offsets);

}  // namespace fastmmoe::attention
