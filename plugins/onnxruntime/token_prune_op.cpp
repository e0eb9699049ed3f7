// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"
#include "token_prune/node.h"

namespace fastmmoe {
namespace {

using namespace token_prune;

class TokenPruneKernel {
 public:
  static const OpContract& contract() { return token_prune::contract(); }
  static constexpr const char* kProvider = "CPUExecutionProvider";
  static constexpr ElementType kFloatType = ElementType::kFloat;

  explicit TokenPruneKernel(const OrtKernelInfo* info)
      : node_(read_node(contract(), info)), attributes_(read_attributes(node_)) {}

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const Sizes sizes = check_inputs(node_, inputs.infos());
    TokenPruneParams params = read_inputs(inputs, sizes);
    const Ort::KernelContext outputs(context);
    const auto output = [&](size_t index) {
      return outputs.GetOutput(index, output_shape(contract().outputs[index], sizes));
    };
    params.hidden_states_out = output(kHiddenStatesOut).GetTensorMutableData<float>();
    params.residual_out = output(kResidualOut).GetTensorMutableData<float>();
    params.kept_index = output(kKeptIndex).GetTensorMutableData<int32_t>();
    params.visual_index_out = output(kVisualIndexOut).GetTensorMutableData<int32_t>();
    token_prune_cpu(params, parallel_for_of(context));
  }

 private:
  TokenPruneParams read_inputs(const Inputs& inputs, const Sizes& sizes) const {
    TokenPruneParams params{};
    params.attributes = attributes_;
    params.type = FloatType::kFloat;
    params.T = sizes['T'];
    params.V = sizes['V'];
    params.K = sizes['K'];
    params.M = sizes['M'];
    params.H = sizes['H'];
    params.E = sizes['E'];
    params.hidden_states = inputs.data(kHiddenStates);
    params.residual = inputs.data(kResidual);
    params.routing_probs = inputs.data<float>(kRoutingProbs);
    params.attention = inputs.data<float>(kAttention);
    params.visual_index = inputs.data<int32_t>(kVisualIndex);
    check_rows(contract(), contract().inputs[kVisualIndex], params.visual_index, params.V, params.T);
    params.alpha = inputs.data<float>(kAlpha);
    CHECK(0.0f <= *params.alpha && *params.alpha <= 1.0f, "FmmTokenPrune: alpha is ", *params.alpha,
          ", expected 0 to 1");
    return params;
  }

  NodeAttributes node_;
  TokenPruneAttributes attributes_;
};

}  // namespace

const OrtCustomOp* token_prune_op() {
  static const CustomOp<TokenPruneKernel> op;
  return &op;
}

}  // namespace fastmmoe
