// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"
#include "sparse_moe/params.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

SparseMoeAttributes read_attributes(const Attributes& attributes) {
  SparseMoeAttributes result{};
  result.top_k = attributes.integer(kTopK, 1, 16);
  result.scoring_func =
      static_cast<ScoringFunc>(attributes.choice(kScoringFunc, {"softmax", "sigmoid", "topk_softmax"}));
  result.topk_method =
      static_cast<TopkMethod>(attributes.choice(kTopkMethod, {"greedy", "group_limited_greedy", "noaux_tc"}));
  result.n_group = attributes.integer(kNGroup, 1, 64);
  result.topk_group = attributes.integer(kTopkGroup, 1, 64);
  result.norm_topk_prob = attributes.integer(kNormTopkProb, 0, 1) == 1;
  result.routed_scaling_factor = attributes.number(kRoutedScalingFactor);
  result.reduction_weights =
      static_cast<ReductionWeights>(attributes.choice(kReductionWeights, {"preserve_sum", "none"}));
  result.activation = static_cast<Activation>(attributes.choice(kActivation, {"swiglu", "swiglu_oai"}));
  result.swiglu_limit = attributes.number(kSwigluLimit);
  result.expert_bias = attributes.integer(kExpertBias, 0, 1) == 1;
  const bool has_groups = result.topk_method != TopkMethod::kGreedy;
  CHECK(!has_groups || result.topk_group <= result.n_group, "FmmSparseMoE: attribute topk_group is ",
        result.topk_group, ", expected at most n_group = ", result.n_group);
  return result;
}

FloatType weight_type(const Inputs& inputs, Input input) {
  switch (inputs.type(input)) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return FloatType::kFloat;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return FloatType::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return FloatType::kBfloat16;
    default:
      throw_check_error("FmmSparseMoE: ", contract().inputs[input].name, " has ONNX element type ",
                        inputs.type(input), ", expected float (1), float16 (10) or bfloat16 (16)");
  }
}

// Sizes and shapes; pointers are set by read_pointers.
SparseMoeParams read_shapes(const SparseMoeAttributes& attributes, const Inputs& inputs) {
  SparseMoeParams params{};
  params.attributes = attributes;
  params.T = inputs.shape(kHiddenStates)[0];
  params.H = inputs.shape(kHiddenStates)[1];
  params.E = inputs.shape(kRouterLogits)[1];
  params.V = inputs.shape(kVisualIndex)[0];
  const int64_t rows = inputs.shape(kGateUp)[1];
  CHECK(rows % 2 == 0, "FmmSparseMoE: gate_up has ", rows, " rows an expert, expected an even number: 2I");
  params.I = rows / 2;
  inputs.expect_shape(kRouterLogits, {params.T, params.E});
  inputs.expect_shape(kVisualTopK, {1});
  inputs.expect_shape(kCorrectionBias, {params.E});
  inputs.expect_shape(kGateUp, {params.E, rows, params.H});
  inputs.expect_shape(kDown, {params.E, params.H, params.I});
  for (const Input bias : {kGateUpBias, kDownBias}) {
    CHECK(attributes.expert_bias || !inputs.has(bias), "FmmSparseMoE: input ", contract().inputs[bias].name,
          " is given, expected none with expert_bias = 0");
  }
  if (attributes.expert_bias) {
    inputs.expect_shape(kGateUpBias, {params.E, rows});
    inputs.expect_shape(kDownBias, {params.E, params.H});
  }
  CHECK(attributes.top_k <= params.E, "FmmSparseMoE: top_k is ", attributes.top_k,
        ", expected at most E = ", params.E);
  const bool has_groups = attributes.topk_method != TopkMethod::kGreedy;
  CHECK(!has_groups || params.E % attributes.n_group == 0, "FmmSparseMoE: n_group is ", attributes.n_group,
        ", expected a divisor of E = ", params.E);
  CHECK(params.T <= std::numeric_limits<int32_t>::max(), "FmmSparseMoE: T is ", params.T,
        ", expected less than 2^31 tokens");
  return params;
}

void read_values(const Inputs& inputs, SparseMoeParams& params) {
  inputs.expect_rows(kVisualIndex, params.T);
  params.visual_top_k = *inputs.data<int32_t>(kVisualTopK);
  CHECK(1 <= params.visual_top_k && params.visual_top_k <= params.attributes.top_k,
        "FmmSparseMoE: visual_top_k is ", params.visual_top_k,
        ", expected 1 to top_k = ", params.attributes.top_k);
  params.weight_type = weight_type(inputs, kGateUp);
  CHECK(weight_type(inputs, kDown) == params.weight_type, "FmmSparseMoE: gate_up has ONNX element type ",
        inputs.type(kGateUp), " and down ", inputs.type(kDown), ", expected the same");
  params.hidden_states = inputs.data<float>(kHiddenStates);
  params.router_logits = inputs.data<float>(kRouterLogits);
  params.visual_index = inputs.data<int32_t>(kVisualIndex);
  params.correction_bias = inputs.data<float>(kCorrectionBias);
  params.gate_up = inputs.raw_data(kGateUp);
  params.down = inputs.raw_data(kDown);
  if (params.attributes.expert_bias) {
    params.gate_up_bias = inputs.data<float>(kGateUpBias);
    params.down_bias = inputs.data<float>(kDownBias);
  }
}

class SparseMoeKernel {
 public:
  static const OpContract& contract() { return sparse_moe::contract(); }

  explicit SparseMoeKernel(const OrtKernelInfo* info)
      : attributes_(read_attributes(Attributes(contract(), info))) {}

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(contract(), context);
    SparseMoeParams params = read_shapes(attributes_, inputs);
    read_values(inputs, params);
    params.output =
        Ort::KernelContext(context).GetOutput(0, {params.T, params.H}).GetTensorMutableData<float>();
    sparse_moe_cpu(params, parallel_for_of(context));
  }

 private:
  SparseMoeAttributes attributes_;
};

}  // namespace

const OrtCustomOp* sparse_moe_op() {
  static const CustomOp<SparseMoeKernel> op;
  return &op;
}

}  // namespace fastmmoe
