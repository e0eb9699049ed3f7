// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"
#include "token_prune/cpu/kernel.h"
#include "token_prune/kernel_params.h"

namespace fastmmoe {
namespace {

using namespace token_prune;

class TokenPruneKernel {
 public:
  static const OpContract& contract() { return token_prune::contract(); }
  static constexpr const char* kProvider = "CPUExecutionProvider";
  static constexpr ElementType kFloatType = ElementType::kFloat;

  explicit TokenPruneKernel(const OrtKernelInfo* info) : node_(contract(), info) {}

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const std::vector<TensorInfo> infos = inputs.infos();
    const Sizes sizes = check_inputs(node_, infos);
    check_rows(contract(), contract().inputs[kVisualIndex], inputs.data<int32_t>(kVisualIndex), sizes['V'],
               sizes['T']);
    check_offsets(node_, sizes, inputs.data<int32_t>(kVisualOffsets), inputs.data<int32_t>(kKeepOffsets),
                  inputs.data<int32_t>(kMergeOffsets));
    const float alpha = *inputs.data<float>(kAlpha);
    CHECK(0.0f <= alpha && alpha <= 1.0f, "FmmTokenPrune: alpha is ", alpha, ", expected 0 to 1");
    const Outputs outputs(node_, sizes, context);
    const auto data = [&](size_t input) { return inputs.data(input); };
    const TokenPruneParams params =
        kernel_params(node_, infos, sizes, data, [&](size_t output) { return outputs.data(output); });
    token_prune_cpu(params, parallel_for_of(context));
  }

 private:
  Node node_;
};

}  // namespace

std::vector<const OrtCustomOp*> token_prune_ops() {
  static const CustomOp<TokenPruneKernel> op;
  return {&op};
}

}  // namespace fastmmoe
