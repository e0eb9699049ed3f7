// SPDX-License-Identifier: Apache-2.0
#include "linear/node.h"

namespace fastmmoe::linear {

LinearAttributes read_attributes(const NodeAttributes& node) {
  LinearAttributes result{};
  result.out_features = node.integer(kOutFeatures);
  result.weight_format = weight_format_of(node);
  result.weight_layout = weight_layout_of(node);
  result.group_size = node.integer(kGroupSize);
  result.zero_points = node.integer(kZeroPoints) == 1;
  result.has_bias = node.integer(kHasBias) == 1;
  result.activation = activation_of(node);
  result.has_residual = node.integer(kHasResidual) == 1;
  const char* format = node.text(kWeightFormat);
  const bool is_float = result.weight_format == WeightFormat::kFloat;
  CHECK(is_float == (result.group_size == 0), "FmmLinear: attribute group_size is ", result.group_size,
        " with weight_format ", format, ", expected 0 with float only");
  CHECK(!is_float || !result.zero_points,
        "FmmLinear: attribute zero_points is 1 with weight_format float, expected 0");
  CHECK(is_float || result.weight_layout == WeightLayout::kTiles,
        "FmmLinear: attribute weight_layout is logical with weight_format ", format, ", expected tiles");
  return result;
}

Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs) {
  const LinearAttributes attributes = read_attributes(node);
  const bool is_float = attributes.weight_format == WeightFormat::kFloat;
  Sizes known;
  known.set('N', attributes.out_features);
  known.set('p', is_float ? 2 : attributes.weight_format == WeightFormat::kInt8 ? 4 : 8);
  known.set('c', is_float ? 2 : 4);
  known.set('o', kPanel);
  known.set('g', attributes.group_size);
  const Sizes sizes = fastmmoe::bind_inputs(node, inputs, known);
  if (!node.has(kWeightTiles)) return sizes;
  const ElementType found = inputs[node.position(kWeightTiles)].type;
  const ElementType expected = is_float ? ElementType::kBfloat16 : ElementType::kInt8;
  CHECK(found == expected, "FmmLinear: weight_tiles is ", name_of(found), ", expected ", name_of(expected),
        " with weight_format ", node.text(kWeightFormat));
  return sizes;
}

}  // namespace fastmmoe::linear
