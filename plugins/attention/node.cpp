// SPDX-License-Identifier: Apache-2.0
#include "attention/node.h"

namespace fastmmoe::attention {

AttentionAttributes read_attributes(const NodeAttributes& node) {
  const AttentionAttributes attributes{node.number(kScale),
                                       node.integer(kWindow),
                                       node.integer(kValueWidth),
                                       node.integer(kHasSinks) != 0,
                                       node.integer(kWritesPositionIds) != 0,
                                       node.integer(kHasLse) != 0};
  CHECK(!attributes.writes_position_ids || attributes.window > 0,
        "FmmAttention: writes_position_ids is 1 and window is 0: only layers with a window have "
        "position_ids");
  return attributes;
}

Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs) {
  Sizes known;
  const int64_t width = node.integer(kValueWidth);
  if (width > 0) known.set('W', width);
  const Sizes sizes = bind_inputs(node, inputs, known);
  CHECK(sizes['N'] % sizes['K'] == 0, "FmmAttention: N is ", sizes['N'],
        ", expected a multiple of K = ", sizes['K']);
  CHECK(sizes['A'] <= sizes['B'], "FmmAttention: A is ", sizes['A'], ", expected at most B = ", sizes['B']);
  CHECK(width <= sizes['D'], "FmmAttention: value_width is ", width, ", expected at most D = ", sizes['D']);
  return sizes;
}

namespace {

void check_values(size_t input, const int32_t* values, int64_t count, int64_t most) {
  for (int64_t i = 0; i < count; ++i) {
    CHECK(0 <= values[i] && values[i] <= most, "FmmAttention: ", contract().inputs[input].name, "[", i,
          "] is ", values[i], ", expected 0 to ", most);
  }
}

}  // namespace

void check_sequences(const Sizes& sizes, const int32_t* past_lengths, const int32_t* sequence_ids,
                     const int32_t* sequence_offsets) {
  const int64_t A = sizes['A'], B = sizes['B'], T = sizes['T'], C = sizes['C'];
  CHECK(sequence_offsets[0] == 0, "FmmAttention: sequence_offsets[0] is ", sequence_offsets[0],
        ", expected 0");
  for (int64_t a = 0; a < A; ++a) {
    CHECK(sequence_offsets[a] < sequence_offsets[a + 1], "FmmAttention: sequence_offsets[", a + 1, "] is ",
          sequence_offsets[a + 1], " after ", sequence_offsets[a], ", expected ascending");
  }
  CHECK(sequence_offsets[A] == T, "FmmAttention: sequence_offsets[", A, "] is ", sequence_offsets[A],
        ", expected T = ", T);
  check_values(kPastLengths, past_lengths, B, C);
  check_values(kSequenceIds, sequence_ids, T, B - 1);
  std::vector<bool> seen(static_cast<size_t>(B));
  for (int64_t a = 0; a < A; ++a) {
    const int64_t first = sequence_offsets[a], end = sequence_offsets[a + 1];
    const int32_t b = sequence_ids[first];
    for (int64_t t = first; t < end; ++t) {
      CHECK(sequence_ids[t] == b, "FmmAttention: sequence_ids[", t, "] is ", sequence_ids[t], ", expected ",
            b, " up to ", end);
    }
    CHECK(!seen[static_cast<size_t>(b)], "FmmAttention: sequence_ids[", first, "] is ", b,
          ", which has rows before; expected them together");
    seen[static_cast<size_t>(b)] = true;
    CHECK(past_lengths[b] + (end - first) <= C, "FmmAttention: sequence ", b, " has ", past_lengths[b],
          " rows and gets ", end - first, ", expected at most C = ", C);
  }
}

}  // namespace fastmmoe::attention
