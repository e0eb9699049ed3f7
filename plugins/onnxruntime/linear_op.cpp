// SPDX-License-Identifier: Apache-2.0
#include "contract/float_type.h"
#include "linear/cpu/kernel.h"
#include "linear/node.h"
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"

namespace fastmmoe {
namespace {

using namespace linear;

class LinearKernel {
 public:
  static const OpContract& contract() { return linear::contract(); }
  static constexpr const char* kProvider = "CPUExecutionProvider";
  static constexpr ElementType kFloatType = ElementType::kFloat;

  LinearKernel(const OrtKernelInfo* info, bool is_exact)
      : node_(contract(), info), attributes_(read_attributes(node_)), is_exact_(is_exact) {}

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const std::vector<TensorInfo> infos = inputs.infos();
    const Sizes sizes = check_inputs(node_, infos);
    const Outputs outputs(node_, sizes, context);
    LinearParams params{};
    params.attributes = attributes_;
    params.is_exact = is_exact_;
    params.T = sizes['T'];
    params.K = sizes['K'];
    params.N = sizes['N'];
    params.x = inputs.data<float>(kX);
    if (attributes_.weight_format == WeightFormat::kFloat) {
      params.weight_type = float_type(infos[node_.position(kWeight)].type);
    }
    params.weight = inputs.data(kWeight);
    params.bias = inputs.data<float>(kBias);
    params.scale = inputs.data<Float16>(kScale);
    params.zero = inputs.data<int8_t>(kZero);
    params.residual = inputs.data<float>(kResidual);
    params.y = static_cast<float*>(outputs.data(kY));
    linear_cpu(params, parallel_for_of(context));
  }

 private:
  Node node_;
  LinearAttributes attributes_;
  bool is_exact_;
};

}  // namespace

std::vector<const OrtCustomOp*> linear_ops(bool is_exact) {
  static const CustomOp<LinearKernel> fast(false), exact(true);
  return {is_exact ? &exact : &fast};
}

}  // namespace fastmmoe
