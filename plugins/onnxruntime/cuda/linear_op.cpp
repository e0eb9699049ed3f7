// SPDX-License-Identifier: Apache-2.0
#include "linear/cuda/kernel_params.h"
#include "onnxruntime/cuda/device.h"
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"

namespace fastmmoe {
namespace {

using namespace linear;

template <ElementType kType>
class LinearKernel {
 public:
  static const OpContract& contract() { return linear::contract(); }
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr ElementType kFloatType = kType;

  explicit LinearKernel(const OrtKernelInfo* info) : node_(contract(), info) { check_packed_rows(node_); }

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const std::vector<TensorInfo> infos = inputs.infos();
    const Sizes sizes = check_inputs(node_, infos);
    LinearKernelParams params =
        kernel_params(node_, infos, sizes, [&](size_t input) { return inputs.data(input); });
    params.y = Outputs(node_, sizes, context).data(kY);
    launch_linear(params, stream_of(context));
  }

 private:
  Node node_;
};

}  // namespace

std::vector<const OrtCustomOp*> linear_ops(bool) {
  static const CustomOp<LinearKernel<ElementType::kFloat16>> half;
  static const CustomOp<LinearKernel<ElementType::kBfloat16>> bfloat16;
  return {&half, &bfloat16};
}

}  // namespace fastmmoe
