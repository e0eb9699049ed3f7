// SPDX-License-Identifier: Apache-2.0
#include "linear/node.h"

#include "contract/weights.h"

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
  return result;
}

void check_packed_rows(const NodeAttributes& node) {
  const LinearAttributes attributes = read_attributes(node);
  CHECK(attributes.weight_layout == WeightLayout::kLogical,
        "FmmLinear: attribute weight_layout is tiles, expected logical on CUDA: tiles are for the CPU");
  CHECK(attributes.weight_format != WeightFormat::kFloat,
        "FmmLinear: attribute weight_format is float, expected int8 or int4 on CUDA");
}

Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs) {
  const LinearAttributes attributes = read_attributes(node);
  const StoredWeights weights{
      attributes.weight_format == WeightFormat::kFloat, attributes.weight_format == WeightFormat::kInt4,
      attributes.weight_layout == WeightLayout::kTiles, attributes.group_size, node.text(kWeightFormat)};
  Sizes known = weight_sizes(weights);
  known.set('N', attributes.out_features);
  const Sizes sizes = fastmmoe::bind_inputs(node, inputs, known);
  check_weights(node.contract(), "weight", "K", inputs[node.position(kWeight)].type, sizes, weights);
  return sizes;
}

}  // namespace fastmmoe::linear
