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

  VisionAttentionKernel(const OrtKernelInfo* info, bool is_exact)
      : node_(contract(), info), is_exact_(is_exact) {}

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const Sizes sizes = check_inputs(node_, inputs.infos());
    const Outputs outputs(node_, sizes, context);
    VisionAttentionParams params =
        make_params(node_, sizes, inputs.data<float>(kQkv), static_cast<float*>(outputs.data(kOutput)));
    if (is_exact_) params.compute = Compute::kFloat32;
    vision_attention_cpu(params, parallel_for_of(context));
  }

 private:
  Node node_;
  bool is_exact_;
};

}  // namespace

std::vector<const OrtCustomOp*> vision_attention_ops(bool is_exact) {
  static const CustomOp<VisionAttentionKernel> fast(false), exact(true);
  return {is_exact ? &exact : &fast};
}

}  // namespace fastmmoe
