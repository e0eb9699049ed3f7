// SPDX-License-Identifier: Apache-2.0
#include "attention/cpu/kernel.h"
#include "attention/kernel_params.h"
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"

namespace fastmmoe {
namespace {

using namespace attention;

class AttentionKernel {
 public:
  static const OpContract& contract() { return attention::contract(); }
  static constexpr const char* kProvider = "CPUExecutionProvider";
  static constexpr ElementType kFloatType = ElementType::kFloat;

  explicit AttentionKernel(const OrtKernelInfo* info) : node_(contract(), info) { read_attributes(node_); }

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const std::vector<TensorInfo> infos = inputs.infos();
    const Sizes sizes = check_inputs(node_, infos);
    CHECK(infos[kPastKey].type != ElementType::kFloat16,
          "FmmAttention: past_key is float16, which has no CPU kernel, expected float or bfloat16");
    check_sequences(sizes, inputs.data<int32_t>(kPastLengths), inputs.data<int32_t>(kSequenceIds),
                    inputs.data<int32_t>(kSequenceOffsets));
    const Outputs outputs(node_, sizes, context);
    const AttentionParams params = kernel_params(
        node_, infos, sizes, [&](size_t input) { return inputs.data(input); },
        [&](size_t output) { return outputs.data(output); });
    attention_cpu(params, parallel_for_of(context));
  }

 private:
  Node node_;
};

}  // namespace

std::vector<const OrtCustomOp*> attention_ops() {
  static const CustomOp<AttentionKernel> op;
  return {&op};
}

}  // namespace fastmmoe
