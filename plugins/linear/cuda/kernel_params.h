// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>

#include "contract/float_type.h"
#include "linear/cuda/kernel.h"
#include "linear/node.h"

namespace fastmmoe::linear {

// What the kernels count in 32 bits, within the contract's limits: bytes of a row, rows with those that fill
// up tiles. Grids are at most 65535 blocks high, of 128 columns each.
constexpr int64_t kMostInt = std::numeric_limits<int32_t>::max();
static_assert(kMostK * 16 <= kMostInt && kMostN + 128 <= kMostInt && kMostT + 128 <= kMostInt);
static_assert(kMostN / 128 <= 65535);
// The greatest offsets in bytes, in 64 bits.
static_assert(kMostT * kMostN * 4 > 0 && kMostN * kMostK * 4 > 0);

/// The parameters of a node whose inputs have passed check_inputs, all but y. data(input): the input's device
/// memory, null where the node has no such input.
template <typename Data>
LinearKernelParams kernel_params(const NodeAttributes& node, const std::vector<TensorInfo>& inputs,
                                 const Sizes& sizes, const Data& data) {
  LinearKernelParams params{};
  params.attributes = read_attributes(node);
  params.type = float_type(inputs[node.position(kX)].type);
  params.T = sizes['T'];
  params.K = sizes['K'];
  params.N = sizes['N'];
  params.x = data(kX);
  params.weight = data(kWeight);
  params.bias = data(kBias);
  params.scale = data(kScale);
  params.zero = static_cast<const int8_t*>(data(kZero));
  params.residual = data(kResidual);
  return params;
}

}  // namespace fastmmoe::linear
