// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>

#include "contract/float_type.h"
#include "sparse_moe/cuda/kernel.h"
#include "sparse_moe/node.h"

namespace fastmmoe::sparse_moe {

// What the kernels count in 32 bits, within the contract's limits and their own: rows of the weights of all
// experts, bytes of a row, rows of slots with those that fill up tiles of 128. Grids are at most 65535 blocks
// high, of no less than 8 columns each.
constexpr int64_t kMostInt = std::numeric_limits<int32_t>::max();
static_assert(kSparseMoeMaxExperts * 2 * kMostI <= kMostInt && kSparseMoeMaxExperts * kMostH <= kMostInt);
static_assert(kMostH * 16 <= kMostInt && kMostI * 16 <= kMostInt);
static_assert(kMostT * kMostTopK + kSparseMoeMaxExperts * 127 <= kMostInt / 2);
static_assert(kMostI / 8 <= 65535 && kMostH / 8 <= 65535);
// The workspace and the greatest offsets in bytes, in 64 bits.
static_assert((kMostT * kMostTopK + kSparseMoeMaxExperts * 127) * (kMostI + kMostH) * 4 > 0);

/// The parameters of a node whose inputs have passed check_inputs, all but the output. data(input): the
/// input's device memory, null where the node has no such input.
template <typename Data>
SparseMoeKernelParams kernel_params(const NodeAttributes& node, const std::vector<TensorInfo>& inputs,
                                    const Sizes& sizes, const Data& data) {
  SparseMoeKernelParams params{};
  params.attributes = read_attributes(node);
  params.type = float_type(inputs[node.position(kHiddenStates)].type);
  params.T = sizes['T'];
  params.V = sizes['V'];
  params.H = sizes['H'];
  params.I = sizes['I'];
  params.E = sizes['E'];
  params.hidden_states = data(kHiddenStates);
  params.router_logits = static_cast<const float*>(data(kRouterLogits));
  params.visual_index = static_cast<const int32_t*>(data(kVisualIndex));
  params.visual_top_k = static_cast<const int32_t*>(data(kVisualTopK));
  params.correction_bias = static_cast<const float*>(data(kCorrectionBias));
  params.gate_up = data(kGateUp);
  params.down = data(kDown);
  params.gate_up_bias = data(kGateUpBias);
  params.down_bias = data(kDownBias);
  params.gate_up_scale = data(kGateUpScale);
  params.down_scale = data(kDownScale);
  params.gate_up_zero = static_cast<const int8_t*>(data(kGateUpZero));
  params.down_zero = static_cast<const int8_t*>(data(kDownZero));
  return params;
}

}  // namespace fastmmoe::sparse_moe
