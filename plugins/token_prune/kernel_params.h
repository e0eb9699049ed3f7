// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>

#include "contract/float_type.h"
#include "token_prune/node.h"
#include "token_prune/params.h"

namespace fastmmoe::token_prune {

// The CUDA kernels count tokens, sequences and chunks of tokens in 32 bits, and add the stride of a grid to
// them. The workspace is counted in 64 bits.
static_assert(kMostT + kMostB <= std::numeric_limits<int32_t>::max() / 2);
static_assert((kMostV + kMostB) * kMostE * int64_t{sizeof(double)} > 0);

/// The parameters of a node whose inputs have passed check_inputs. data(input) and output(index): device
/// memory, for the CPU kernel the host's.
template <typename Data, typename OutputData>
TokenPruneParams kernel_params(const NodeAttributes& node, const std::vector<TensorInfo>& inputs,
                               const Sizes& sizes, const Data& data, const OutputData& output) {
  TokenPruneParams params{};
  params.attributes = read_attributes(node);
  params.type = float_type(inputs[kHiddenStates].type);
  params.B = sizes['B'];
  params.T = sizes['T'];
  params.V = sizes['V'];
  params.K = sizes['K'];
  params.M = sizes['M'];
  params.H = sizes['H'];
  params.E = sizes['E'];
  params.hidden_states = data(kHiddenStates);
  params.residual = data(kResidual);
  params.routing_probs = static_cast<const float*>(data(kRoutingProbs));
  params.attention = static_cast<const float*>(data(kAttention));
  params.visual_index = static_cast<const int32_t*>(data(kVisualIndex));
  params.visual_offsets = static_cast<const int32_t*>(data(kVisualOffsets));
  params.keep_offsets = static_cast<const int32_t*>(data(kKeepOffsets));
  params.merge_offsets = static_cast<const int32_t*>(data(kMergeOffsets));
  params.alpha = static_cast<const float*>(data(kAlpha));
  params.hidden_states_out = output(kHiddenStatesOut);
  params.residual_out = output(kResidualOut);
  params.kept_index = static_cast<int32_t*>(output(kKeptIndex));
  params.visual_index_out = static_cast<int32_t*>(output(kVisualIndexOut));
  return params;
}

}  // namespace fastmmoe::token_prune
