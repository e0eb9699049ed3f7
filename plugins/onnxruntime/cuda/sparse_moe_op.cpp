// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/cuda/device.h"
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"
#include "sparse_moe/cuda/kernel_params.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

template <ElementType kType>
class SparseMoeKernel {
 public:
  static const OpContract& contract() { return sparse_moe::contract(); }
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr ElementType kFloatType = kType;

  explicit SparseMoeKernel(const OrtKernelInfo* info) : node_(contract(), info) {
    read_attributes(node_);  // refuses those that do not go together
    check_logical(node_);
  }

  void compute(OrtKernelContext* context) const {
    const Inputs inputs(node_, context);
    const std::vector<TensorInfo> infos = inputs.infos();
    const Sizes sizes = check_inputs(node_, infos);
    SparseMoeKernelParams params =
        kernel_params(node_, infos, sizes, [&](size_t input) { return inputs.data(input); });
    params.output = Outputs(node_, sizes, context).data(kOutput);
    const Workspace workspace(context, sparse_moe_workspace_bytes(params));
    launch_sparse_moe(params, workspace.data(), stream_of(context));
  }

 private:
  Node node_;
};

}  // namespace

std::vector<const OrtCustomOp*> sparse_moe_ops(bool) {
  static const CustomOp<SparseMoeKernel<ElementType::kFloat16>> half;
  static const CustomOp<SparseMoeKernel<ElementType::kBfloat16>> bfloat16;
  return {&half, &bfloat16};
}

}  // namespace fastmmoe
