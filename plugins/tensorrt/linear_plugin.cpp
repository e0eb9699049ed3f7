// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "linear/cuda/kernel_params.h"
#include "tensorrt/plugins.h"

namespace fastmmoe {
namespace {

using namespace linear;

class LinearPlugin final : public ContractPlugin {
 public:
  LinearPlugin(NodeAttributes node, std::string name) : ContractPlugin(std::move(node), std::move(name)) {
    check_packed_rows(this->node());
  }

 private:
  std::unique_ptr<ContractPlugin> copy() const override {
    return std::make_unique<LinearPlugin>(node(), name());
  }

  void check_kernel_type(const TensorContract& tensor, ElementType type, ElementType) const override {
    CHECK(tensor.variable != 'F' || type != ElementType::kFloat, contract().name, ": ", tensor.name,
          " is float, expected float16 or bfloat16 on CUDA");
    CHECK(tensor.variable != 'W' || type == ElementType::kInt8, contract().name, ": ", tensor.name, " is ",
          name_of(type), ", expected int8 with weight_format ", node().text(kWeightFormat));
  }

  Sizes check_inputs(const std::vector<TensorInfo>& inputs) const override {
    return linear::check_inputs(node(), inputs);
  }

  size_t workspace_bytes(const std::vector<TensorInfo>& inputs, const Sizes& sizes) const override {
    const auto nowhere = [](size_t) -> const void* { return nullptr; };
    check_linear(kernel_params(node(), inputs, sizes, nowhere));
    return 0;
  }

  void launch(const PluginCall& call) const override {
    LinearKernelParams params = kernel_params(node(), call.inputs, call.sizes, [&](size_t input) {
      return node().has(input) ? call.input_data[node().position(input)] : nullptr;
    });
    params.y = call.output_data[kY];
    launch_linear(params, call.stream);
  }
};

}  // namespace

std::unique_ptr<ContractPlugin> make_linear_plugin(NodeAttributes node, std::string name) {
  return std::make_unique<LinearPlugin>(std::move(node), std::move(name));
}

}  // namespace fastmmoe
