// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/kernel.h"
#include "attention/kernel_params.h"
#include "onnxruntime/cuda/device.h"
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"

namespace fastmmoe {
namespace {

using namespace attention;

// What is in past_lengths, sequence_ids and sequence_offsets stays on the device: who runs the graph has
// checked it.
template <ElementType kType>
class AttentionKernel {
 public:
  static const OpContract& contract() { return attention::contract(); }
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr ElementType kFloatType = kType;

  explicit AttentionKernel(const OrtKernelInfo* info) : node_(contract(), info) { read_attributes(node_); }

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const std::vector<TensorInfo> infos = inputs.infos();
    const Sizes sizes = check_inputs(node_, infos);
    const Outputs outputs(node_, sizes, context);
    const AttentionParams params = kernel_params(
        node_, infos, sizes, [&](size_t input) { return inputs.data(input); },
        [&](size_t output) { return outputs.data(output); });
    const Workspace workspace(context, attention_workspace_bytes(params));
    launch_attention(params, workspace.data(), stream_of(context));
  }

 private:
  Node node_;
};

}  // namespace

std::vector<const OrtCustomOp*> attention_ops() {
  static const CustomOp<AttentionKernel<ElementType::kFloat16>> half;
  static const CustomOp<AttentionKernel<ElementType::kBfloat16>> bfloat16;
  return {&half, &bfloat16};
}

}  // namespace fastmmoe
