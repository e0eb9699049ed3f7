// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"
#include "rotary/cpu/kernel.h"
#include "rotary/node.h"

namespace fastmmoe {
namespace {

using namespace rotary;

class RotaryKernel {
 public:
  static const OpContract& contract() { return rotary::contract(); }
  static constexpr const char* kProvider = "CPUExecutionProvider";
  static constexpr ElementType kFloatType = ElementType::kFloat;

  explicit RotaryKernel(const OrtKernelInfo* info) : node_(contract(), info) { check_attributes(node_); }

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const Sizes sizes = check_inputs(node_, inputs.infos());
    const Outputs outputs(node_, sizes, context);
    rotary_cpu({node_.number(kEpsilon), sizes['T'], sizes['N'], sizes['P'], inputs.data<float>(kX),
                inputs.data<float>(kCos), inputs.data<float>(kSin), inputs.data<float>(kNorm),
                static_cast<float*>(outputs.data(kY))},
               parallel_for_of(context));
  }

 private:
  Node node_;
};

}  // namespace

std::vector<const OrtCustomOp*> rotary_ops() {
  static const CustomOp<RotaryKernel> op;
  return {&op};
}

}  // namespace fastmmoe
