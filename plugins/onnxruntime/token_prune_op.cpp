// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"
#include "token_prune/params.h"

namespace fastmmoe {
namespace {

using namespace token_prune;

TokenPruneParams read_inputs(const TokenPruneAttributes& attributes, const Inputs& inputs) {
  TokenPruneParams params{};
  params.attributes = attributes;
  params.type = FloatType::kFloat;
  params.T = inputs.shape(kHiddenStates)[0];
  params.H = inputs.shape(kHiddenStates)[1];
  params.E = inputs.shape(kRoutingProbs)[1];
  params.V = inputs.shape(kVisualIndex)[0];
  params.K = inputs.shape(kKeepSlots)[0];
  params.M = inputs.shape(kMergeSlots)[0];
  inputs.expect_shape(kResidual, {params.T, params.H});
  inputs.expect_shape(kRoutingProbs, {params.V, params.E});
  inputs.expect_shape(kAttention, {params.V});
  inputs.expect_shape(kAlpha, {1});
  CHECK(params.T <= std::numeric_limits<int32_t>::max(), "FmmTokenPrune: T is ", params.T,
        ", expected less than 2^31 tokens");
  inputs.expect_rows(kVisualIndex, params.T);
  params.alpha = inputs.data<float>(kAlpha);
  params.hidden_states = inputs.data<float>(kHiddenStates);
  params.residual = inputs.data<float>(kResidual);
  params.routing_probs = inputs.data<float>(kRoutingProbs);
  params.attention = inputs.data<float>(kAttention);
  params.visual_index = inputs.data<int32_t>(kVisualIndex);
  return params;
}

void check_sizes(const TokenPruneParams& params) {
  const float alpha = *params.alpha;
  CHECK(0.0f <= alpha && alpha <= 1.0f, "FmmTokenPrune: alpha is ", alpha, ", expected 0 to 1");
  CHECK(params.K <= params.V, "FmmTokenPrune: ", params.K, " keep slots for ", params.V,
        " visual tokens; at most ", params.V, " can be kept");
  if (params.K == params.V) return;
  const int64_t most = std::min(params.K, merge_capacity(params.V, params.K, params.attributes.window));
  CHECK(params.M <= most, "FmmTokenPrune: ", params.M, " merge slots, at most ", most);
}

class TokenPruneKernel {
 public:
  static const OpContract& contract() { return token_prune::contract(); }

  explicit TokenPruneKernel(const OrtKernelInfo* info) {
    const Attributes attributes(contract(), info);
    attributes_.window = attributes.integer(kWindow, 1, 64);
    attributes_.merge = static_cast<Merge>(attributes.choice(token_prune::kMerge, {"mlerp", "mean"}));
  }

  void compute(OrtKernelContext* context) const {
    TokenPruneParams params = read_inputs(attributes_, Inputs(contract(), context));
    check_sizes(params);
    const Ort::KernelContext outputs(context);
    const int64_t rows = params.T - params.V + params.K;
    params.hidden_states_out =
        outputs.GetOutput(kHiddenStatesOut, {rows, params.H}).GetTensorMutableData<float>();
    params.residual_out = outputs.GetOutput(kResidualOut, {rows, params.H}).GetTensorMutableData<float>();
    params.kept_index = outputs.GetOutput(kKeptIndex, {rows}).GetTensorMutableData<int32_t>();
    params.visual_index_out = outputs.GetOutput(kVisualIndexOut, {params.K}).GetTensorMutableData<int32_t>();
    token_prune_cpu(params, parallel_for_of(context));
  }

 private:
  TokenPruneAttributes attributes_;
};

}  // namespace

const OrtCustomOp* token_prune_op() {
  static const CustomOp<TokenPruneKernel> op;
  return &op;
}

}  // namespace fastmmoe
