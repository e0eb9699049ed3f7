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
  const bool is_float = attributes.weight_format == WeightFormat::kFloat;
  const bool is_int4 = attributes.weight_format == WeightFormat::kInt4;
  const bool is_tiled = attributes.weight_layout == WeightLayout::kTiles;
  Sizes known;
  known.set('N', attributes.out_features);
  known.set('p', is_int4 ? 2 : 1);
  known.set('g', attributes.group_size);
  known.set('n', kPanel);
  known.set('w', is_float ? 2 : is_int4 ? kInt4Columns : 4);
  known.set('b', is_float ? 2 : 4);
  const Sizes sizes = fastmmoe::bind_inputs(node, inputs, known);
  const ElementType weights = inputs[node.position(kWeight)].type;
  CHECK(is_float == (weights != ElementType::kInt8), "FmmLinear: weight is ", name_of(weights), ", expected ",
        is_float ? "float, float16 or bfloat16" : "int8", " with weight_format ", node.text(kWeightFormat));
  CHECK(!is_tiled || !is_float || weights == ElementType::kBfloat16, "FmmLinear: weight is ",
        name_of(weights), ", expected bfloat16 with weight_layout tiles");
  CHECK(!is_int4 || is_tiled || sizes['K'] % kInt4Columns == 0, "FmmLinear: K is ", sizes['K'],
        ", expected a multiple of ", kInt4Columns, " with weight_format int4 and weight_layout logical");
  return sizes;
}

}  // namespace fastmmoe::linear
