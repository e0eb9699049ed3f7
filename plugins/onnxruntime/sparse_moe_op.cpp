// SPDX-License-Identifier: Apache-2.0
#include "contract/float_type.h"
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"
#include "sparse_moe/cpu/kernel.h"
#include "sparse_moe/node.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

class SparseMoeKernel {
 public:
  static const OpContract& contract() { return sparse_moe::contract(); }
  static constexpr const char* kProvider = "CPUExecutionProvider";
  static constexpr ElementType kFloatType = ElementType::kFloat;

  SparseMoeKernel(const OrtKernelInfo* info, bool is_exact)
      : node_(contract(), info), attributes_(read_attributes(node_)), is_exact_(is_exact) {}

  void compute(OrtKernelContext* context) const {
    SparseMoeParams params = read_inputs(Inputs(node_, context));
    params.output =
        Ort::KernelContext(context).GetOutput(kOutput, {params.T, params.H}).GetTensorMutableData<float>();
    sparse_moe_cpu(params, parallel_for_of(context));
  }

 private:
  SparseMoeParams read_inputs(const Inputs& inputs) const {
    const std::vector<TensorInfo> infos = inputs.infos();
    const Sizes sizes = check_inputs(node_, infos);
    SparseMoeParams params{};
    params.attributes = attributes_;
    params.T = sizes['T'];
    params.V = sizes['V'];
    params.H = sizes['H'];
    params.I = sizes['I'];
    params.E = sizes['E'];
    params.is_exact = is_exact_;
    if (attributes_.weight_format == WeightFormat::kFloat) {
      params.weight_type = float_type(infos[node_.position(kGateUp)].type);
    }
    params.hidden_states = inputs.data<float>(kHiddenStates);
    params.router_logits = inputs.data<float>(kRouterLogits);
    params.visual_index = inputs.data<int32_t>(kVisualIndex);
    check_rows(contract(), contract().inputs[kVisualIndex], params.visual_index, params.V, params.T);
    params.visual_top_k = *inputs.data<int32_t>(kVisualTopK);
    CHECK(1 <= params.visual_top_k && params.visual_top_k <= attributes_.top_k,
          "FmmSparseMoE: visual_top_k is ", params.visual_top_k,
          ", expected 1 to top_k = ", attributes_.top_k);
    params.correction_bias = inputs.data<float>(kCorrectionBias);
    params.gate_up = inputs.data(kGateUp);
    params.down = inputs.data(kDown);
    params.gate_up_packed = {inputs.data<Float16>(kGateUpScale), inputs.data<int8_t>(kGateUpZero)};
    params.down_packed = {inputs.data<Float16>(kDownScale), inputs.data<int8_t>(kDownZero)};
    params.gate_up_bias = inputs.data<float>(kGateUpBias);
    params.down_bias = inputs.data<float>(kDownBias);
    return params;
  }

  Node node_;
  SparseMoeAttributes attributes_;
  bool is_exact_;
};

}  // namespace

std::vector<const OrtCustomOp*> sparse_moe_ops(bool is_exact) {
  static const CustomOp<SparseMoeKernel> fast(false), exact(true);
  return {is_exact ? &exact : &fast};
}

}  // namespace fastmmoe
