// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "sparse_moe/cuda/kernel_params.h"
#include "tensorrt/plugins.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

class SparseMoePlugin final : public ContractPlugin {
 public:
  SparseMoePlugin(NodeAttributes node, std::string name)
      : ContractPlugin(std::move(node), std::move(name)),
        format_(read_attributes(this->node()).weight_format) {
    check_logical(this->node());
  }

 private:
  std::unique_ptr<ContractPlugin> copy() const override {
    return std::make_unique<SparseMoePlugin>(node(), name());
  }

  void check_kernel_type(const TensorContract& tensor, ElementType type, ElementType F) const override {
    CHECK(tensor.variable != 'F' || type != ElementType::kFloat, contract().name, ": ", tensor.name,
          " is float, expected float16 or bfloat16 on CUDA");
    if (tensor.variable != 'W') return;
    const ElementType expected = format_ == WeightFormat::kFloat ? F : ElementType::kInt8;
    CHECK(type == expected, contract().name, ": ", tensor.name, " is ", name_of(type), ", expected ",
          name_of(expected), " with weight_format ", node().text(kWeightFormat), " on CUDA");
  }

  Sizes check_inputs(const std::vector<TensorInfo>& inputs) const override {
    return sparse_moe::check_inputs(node(), inputs);
  }

  size_t workspace_bytes(const std::vector<TensorInfo>& inputs, const Sizes& sizes) const override {
    const auto nowhere = [](size_t) -> const void* { return nullptr; };
    return sparse_moe_workspace_bytes(kernel_params(node(), inputs, sizes, nowhere));
  }

  void launch(const PluginCall& call) const override {
    SparseMoeKernelParams params = kernel_params(node(), call.inputs, call.sizes, [&](size_t input) {
      return node().has(input) ? call.input_data[node().position(input)] : nullptr;
    });
    params.output = call.output_data[kOutput];
    launch_sparse_moe(params, call.workspace, call.stream);
  }

  const WeightFormat format_;
};

}  // namespace

std::unique_ptr<ContractPlugin> make_sparse_moe_plugin(NodeAttributes node, std::string name) {
  return std::make_unique<SparseMoePlugin>(std::move(node), std::move(name));
}

}  // namespace fastmmoe
