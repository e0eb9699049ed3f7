// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/node.h"

#include "contract/weights.h"

namespace fastmmoe::sparse_moe {

SparseMoeAttributes read_attributes(const NodeAttributes& node) {
  SparseMoeAttributes result{};
  result.top_k = node.integer(kTopK);
  result.scoring_func = scoring_func_of(node);
  result.topk_method = topk_method_of(node);
  result.n_group = node.integer(kNGroup);
  result.topk_group = node.integer(kTopkGroup);
  result.norm_topk_prob = node.integer(kNormTopkProb) == 1;
  result.routed_scaling_factor = node.number(kRoutedScalingFactor);
  result.reduction_weights = reduction_weights_of(node);
  result.activation = activation_of(node);
  result.swiglu_limit = node.number(kSwigluLimit);
  result.expert_bias = node.integer(kExpertBias) == 1;
  result.weight_format = weight_format_of(node);
  result.group_size = node.integer(kGroupSize);
  result.zero_points = node.integer(kZeroPoints) == 1;
  result.weight_layout = weight_layout_of(node);
  result.expert_size = node.integer(kExpertSize);
  const bool has_groups = result.topk_method != TopkMethod::kGreedy;
  CHECK(!has_groups || result.topk_group <= result.n_group, "FmmSparseMoE: attribute topk_group is ",
        result.topk_group, ", expected at most n_group = ", result.n_group);
  const bool is_float = result.weight_format == WeightFormat::kFloat;
  CHECK(is_float == (result.group_size == 0), "FmmSparseMoE: attribute group_size is ", result.group_size,
        " with weight_format ", is_float ? "float, expected 0" : "int8, int4 or fp8, expected 32, 64 or 128");
  const bool has_zeros = !is_float && result.weight_format != WeightFormat::kFp8;
  CHECK(has_zeros || !result.zero_points, "FmmSparseMoE: attribute zero_points is 1 with weight_format ",
        node.text(kWeightFormat), ", expected 0");
  const bool is_tiled = result.weight_layout == WeightLayout::kTiles;
  CHECK(is_tiled == (result.expert_size > 0), "FmmSparseMoE: attribute expert_size is ", result.expert_size,
        " with weight_layout ", node.text(kWeightLayout), ", expected 0 with logical only");
  CHECK(!is_tiled || result.weight_format != WeightFormat::kFp8,
        "FmmSparseMoE: attribute weight_layout is tiles with weight_format fp8, expected logical");
  return result;
}

void check_logical(const NodeAttributes& node) {
  CHECK(weight_layout_of(node) == WeightLayout::kLogical,
        "FmmSparseMoE: attribute weight_layout is tiles, expected logical on CUDA: tiles are for the CPU");
}

Sizes check_inputs(const NodeAttributes& node, const std::vector<TensorInfo>& inputs) {
  const SparseMoeAttributes attributes = read_attributes(node);
  const StoredWeights weights{
      attributes.weight_format == WeightFormat::kFloat, attributes.weight_format == WeightFormat::kInt4,
      attributes.weight_layout == WeightLayout::kTiles, attributes.group_size, node.text(kWeightFormat)};
  Sizes known = weight_sizes(weights);
  if (weights.is_tiled) known.set('I', attributes.expert_size);
  const Sizes sizes = fastmmoe::bind_inputs(node, inputs, known);
  check_weights(node.contract(), "gate_up", "HI", inputs[node.position(kGateUp)].type, sizes, weights);
  CHECK(attributes.top_k <= sizes['E'], "FmmSparseMoE: top_k is ", attributes.top_k,
        ", expected at most E = ", sizes['E']);
  const bool has_groups = attributes.topk_method != TopkMethod::kGreedy;
  CHECK(!has_groups || sizes['E'] % attributes.n_group == 0, "FmmSparseMoE: n_group is ", attributes.n_group,
        ", expected a divisor of E = ", sizes['E']);
  CHECK(sizes['V'] <= sizes['T'], "FmmSparseMoE: V is ", sizes['V'], ", expected at most T = ", sizes['T']);
  return sizes;
}

}  // namespace fastmmoe::sparse_moe
