// SPDX-License-Identifier: Apache-2.0
#include "token_prune/node.h"

#include <algorithm>
#include <limits>

namespace fastmmoe {

int64_t merge_capacity(int64_t V, int64_t K, int64_t window) {
  if (V == 0 || window == 1) return 0;
  const int64_t windows = (V + window - 1) / window;
  return std::max<int64_t>(0, std::min(windows - 1, (V - K) / (window - 1)));
}

namespace token_prune {

TokenPruneAttributes read_attributes(const NodeAttributes& node) {
  return {node.integer(kWindow), static_cast<Merge>(node.integer(Attribute::kMerge))};
}

Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs) {
  const Sizes sizes = fastmmoe::bind_inputs(node, inputs);
  const int64_t V = sizes['V'], K = sizes['K'], M = sizes['M'];
  CHECK(sizes['T'] <= std::numeric_limits<int32_t>::max(), "FmmTokenPrune: T is ", sizes['T'],
        ", expected less than 2^31 tokens");
  CHECK(K <= V, "FmmTokenPrune: ", K, " keep slots for ", V, " visual tokens; at most ", V, " can be kept");
  if (K == V) return sizes;
  const int64_t most = std::min(K, merge_capacity(V, K, node.integer(kWindow)));
  CHECK(M <= most, "FmmTokenPrune: ", M, " merge slots, at most ", most);
  return sizes;
}

}  // namespace token_prune
}  // namespace fastmmoe
