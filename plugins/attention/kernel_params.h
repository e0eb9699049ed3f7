// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "attention/node.h"
#include "attention/params.h"
#include "contract/float_type.h"

namespace fastmmoe::attention {

/// The parameters of a node whose inputs have passed check_inputs. data(input) and output(index): memory of
/// the processor that runs the kernel, null where the node has no such tensor.
template <typename Data, typename OutputData>
AttentionParams kernel_params(const NodeAttributes& node, const std::vector<TensorInfo>& inputs,
                              const Sizes& sizes, const Data& data, const OutputData& output) {
  const auto integers = [&](size_t input) { return static_cast<const int32_t*>(data(input)); };
  AttentionParams params{};
  params.attributes = read_attributes(node);
  params.type = float_type(inputs[kQuery].type);
  params.cache_type = float_type(inputs[kPastKey].type);
  params.A = sizes['A'];
  params.B = sizes['B'];
  params.T = sizes['T'];
  params.N = sizes['N'];
  params.K = sizes['K'];
  params.C = sizes['C'];
  params.D = sizes['D'];
  params.W = sizes['W'];
  params.query = data(kQuery);
  params.key = data(kKey);
  params.value = data(kValue);
  params.sink_logits = data(kSinkLogits);
  params.past_key = data(kPastKey);
  params.past_value = data(kPastValue);
  params.past_lengths = integers(kPastLengths);
  params.sequence_ids = integers(kSequenceIds);
  params.sequence_offsets = integers(kSequenceOffsets);
  params.position_ids = integers(kPositionIds);
  params.past_position_ids = integers(kPastPositionIds);
  params.output = output(kOutput);
  params.present_key = output(kPresentKey);
  params.present_value = output(kPresentValue);
  params.present_position_ids = static_cast<int32_t*>(output(kPresentPositionIds));
  params.lse = static_cast<float*>(output(kLse));
  return params;
}

}  // namespace fastmmoe::attention
