// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/cuda/device.h"
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"
#include "token_prune/cuda/kernel.h"
#include "token_prune/kernel_params.h"

namespace fastmmoe {
namespace {

using namespace token_prune;

template <ElementType kType>
class TokenPruneKernel {
 public:
  static const OpContract& contract() { return token_prune::contract(); }
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr ElementType kFloatType = kType;

  explicit TokenPruneKernel(const OrtKernelInfo* info) : node_(contract(), info) {}

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const std::vector<TensorInfo> infos = inputs.infos();
    const Sizes sizes = check_inputs(node_, infos);
    const Outputs outputs(node_, sizes, context);
    const auto data = [&](size_t input) { return inputs.data(input); };
    const TokenPruneParams params =
        kernel_params(node_, infos, sizes, data, [&](size_t output) { return outputs.data(output); });
    const size_t bytes = params.K < params.V ? token_prune_workspace_bytes(params.B, params.V, params.E) : 0;
    const Workspace workspace(context, bytes);
    launch_token_prune(params, workspace.data(), stream_of(context));
  }

 private:
  Node node_;
};

}  // namespace

std::vector<const OrtCustomOp*> token_prune_ops() {
  static const CustomOp<TokenPruneKernel<ElementType::kFloat>> single;
  static const CustomOp<TokenPruneKernel<ElementType::kFloat16>> half;
  static const CustomOp<TokenPruneKernel<ElementType::kBfloat16>> bfloat16;
  return {&single, &half, &bfloat16};
}

}  // namespace fastmmoe
