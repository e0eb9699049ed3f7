// SPDX-License-Identifier: Apache-2.0
#include "rotary/node.h"

namespace fastmmoe::rotary {

void check_attributes(const NodeAttributes& node) {
  const float epsilon = node.number(kEpsilon);
  if (node.integer(kHasNorm) == 1) {
    CHECK(epsilon > 0 && epsilon < 1, "FmmRotary: attribute epsilon is ", epsilon,
          " with has_norm 1, expected one between 0 and 1");
  } else {
    CHECK(epsilon == 0, "FmmRotary: attribute epsilon is ", epsilon, " with has_norm 0, expected 0");
  }
}

Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs) {
  return bind_inputs(node, inputs);
}

}  // namespace fastmmoe::rotary
