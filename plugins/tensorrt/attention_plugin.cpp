// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "attention/cuda/kernel.h"
#include "attention/kernel_params.h"
#include "tensorrt/plugins.h"

namespace fastmmoe {
namespace {

using namespace attention;

class AttentionPlugin final : public ContractPlugin {
 public:
  AttentionPlugin(NodeAttributes node, std::string name)
      : ContractPlugin(std::move(node), std::move(name)),
        value_width_(read_attributes(this->node()).value_width) {}

 private:
  std::unique_ptr<ContractPlugin> copy() const override {
    return std::make_unique<AttentionPlugin>(node(), name());
  }

  void check_kernel_type(const TensorContract& tensor, ElementType type, ElementType F) const override {
    CHECK(tensor.variable != 'F' || type != ElementType::kFloat, contract().name, ": ", tensor.name,
          " is float, expected float16 or bfloat16 on CUDA");
    CHECK(tensor.variable != 'S' || type == F, contract().name, ": ", tensor.name, " is ", name_of(type),
          ", expected ", name_of(F), ", the type of query, on CUDA");
  }

  Sizes check_inputs(const std::vector<TensorInfo>& inputs) const override {
    return attention::check_inputs(node(), inputs);
  }

  size_t workspace_bytes(const std::vector<TensorInfo>& inputs, const Sizes& sizes) const override {
    Sizes all = sizes;
    if (value_width_ > 0) all.set('W', value_width_);
    const auto nowhere = [](size_t) -> void* { return nullptr; };
    return attention_workspace_bytes(kernel_params(node(), inputs, all, nowhere, nowhere));
  }

  void launch(const PluginCall& call) const override {
    const AttentionParams params = kernel_params(
        node(), call.inputs, call.sizes,
        [&](size_t input) { return node().has(input) ? call.input_data[node().position(input)] : nullptr; },
        [&](size_t output) {
          return node().has_output(output) ? call.output_data[node().output_position(output)] : nullptr;
        });
    launch_attention(params, call.workspace, call.stream);
  }

  // No input has the width of values that are a part of the keys.
  const nvinfer1::IDimensionExpr& output_dimension(const Dimension& dimension,
                                                   const Expressions& inputs) const override {
    const bool is_width = dimension.terms.size() == 1 && dimension.terms[0].letter == 'W';
    return is_width && value_width_ > 0 ? inputs.constant(value_width_) : inputs.evaluate(dimension);
  }

  const int64_t value_width_;
};

}  // namespace

std::unique_ptr<ContractPlugin> make_attention_plugin(NodeAttributes node, std::string name) {
  return std::make_unique<AttentionPlugin>(std::move(node), std::move(name));
}

}  // namespace fastmmoe
