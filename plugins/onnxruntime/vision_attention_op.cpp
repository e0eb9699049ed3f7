// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"
#include "vision_attention/cpu/kernel.h"
#include "vision_attention/node.h"

namespace fastmmoe {
namespace {

using namespace vision_attention;

class VisionAttentionKernel {
 public:
  static const OpContract& contract() { return vision_attention::contract(); }
  static constexpr const char* kProvider = "CPUExecutionProvider";
  static constexpr ElementType kFloatType = ElementType::kFloat;

  explicit VisionAttentionKernel(const OrtKernelInfo* info) : node_(read_node(contract(), info)) {}

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const Sizes sizes = check_inputs(node_, inputs.infos());
    const Outputs outputs(node_, sizes, context);
    float* const output = static_cast<float*>(outputs.data(kOutput));
    vision_attention_cpu(make_params(node_, sizes, inputs.data<float>(kQkv), output),
                         parallel_for_of(context));
  }

 private:
  NodeAttributes node_;
};

}  // namespace

std::vector<const OrtCustomOp*> vision_attention_ops() {
  static const CustomOp<VisionAttentionKernel> op;
  return {&op};
}

}  // namespace fastmmoe
