// SPDX-License-Identifier: Apache-2.0
#include "token_prune/node.h"

#include <algorithm>

namespace fastmmoe {

int64_t merge_capacity(int64_t V, int64_t K, int64_t window) {
  if (V == 0 || window == 1) return 0;
  const int64_t windows = (V + window - 1) / window;
  return std::max<int64_t>(0, std::min(windows - 1, (V - K) / (window - 1)));
}

namespace token_prune {

TokenPruneAttributes read_attributes(const NodeAttributes& node) {
  return {node.integer(kWindow), merge_of(node)};
}

Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs) {
  const Sizes sizes = fastmmoe::bind_inputs(node, inputs);
  const int64_t V = sizes['V'], K = sizes['K'], M = sizes['M'];
  CHECK(V <= sizes['T'], "FmmTokenPrune: V is ", V, ", expected at most T = ", sizes['T']);
  CHECK(K <= V, "FmmTokenPrune: ", K, " keep slots for ", V, " visual tokens; at most ", V, " can be kept");
  if (K == V) return sizes;
  const int64_t most = std::min(K, merge_capacity(V, K, node.integer(kWindow)));
  CHECK(M <= most, "FmmTokenPrune: ", M, " merge slots, at most ", most);
  return sizes;
}

namespace {

void check_ends(const TensorContract& tensor, const int32_t* offsets, int64_t B, int64_t end) {
  CHECK(offsets[0] == 0, "FmmTokenPrune: ", tensor.name, "[0] is ", offsets[0], ", expected 0");
  for (int64_t b = 0; b < B; ++b) {
    CHECK(offsets[b] <= offsets[b + 1], "FmmTokenPrune: ", tensor.name, "[", b + 1, "] is ", offsets[b + 1],
          " after ", offsets[b], ", expected not descending");
  }
  CHECK(offsets[B] == end, "FmmTokenPrune: ", tensor.name, "[", B, "] is ", offsets[B], ", expected ", end);
}

}  // namespace

void check_offsets(const NodeAttributes& node, const Sizes& sizes, const int32_t* visual_offsets,
                   const int32_t* keep_offsets, const int32_t* merge_offsets) {
  const std::vector<TensorContract>& inputs = contract().inputs;
  check_ends(inputs[kVisualOffsets], visual_offsets, sizes['B'], sizes['V']);
  check_ends(inputs[kKeepOffsets], keep_offsets, sizes['B'], sizes['K']);
  check_ends(inputs[kMergeOffsets], merge_offsets, sizes['B'], sizes['M']);
  for (int64_t b = 0; b < sizes['B']; ++b) {
    const int64_t V = visual_offsets[b + 1] - visual_offsets[b], K = keep_offsets[b + 1] - keep_offsets[b];
    CHECK(K <= V, "FmmTokenPrune: sequence ", b, ": ", K, " keep slots for ", V, " visual tokens; at most ",
          V, " can be kept");
    if (sizes['K'] == sizes['V']) continue;
    const int64_t M = merge_offsets[b + 1] - merge_offsets[b];
    const int64_t most = std::min(K, merge_capacity(V, K, node.integer(kWindow)));
    CHECK(M <= most, "FmmTokenPrune: sequence ", b, ": ", M, " merge slots, at most ", most);
  }
}

}  // namespace token_prune
}  // namespace fastmmoe
