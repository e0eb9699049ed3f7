// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "tensorrt/plugins.h"
#include "token_prune/cuda/kernel.h"
#include "token_prune/kernel_params.h"

namespace fastmmoe {
namespace {

using namespace token_prune;

class TokenPrunePlugin final : public ContractPlugin {
 public:
  using ContractPlugin::ContractPlugin;

 private:
  std::unique_ptr<ContractPlugin> copy() const override {
    return std::make_unique<TokenPrunePlugin>(node(), name());
  }

  // The kernel takes all types of the contract.
  void check_kernel_type(const TensorContract&, ElementType, ElementType) const override {}

  Sizes check_inputs(const std::vector<TensorInfo>& inputs) const override {
    return token_prune::check_inputs(node(), inputs);
  }

  size_t workspace_bytes(const std::vector<TensorInfo>&, const Sizes& sizes) const override {
    return token_prune_workspace_bytes(sizes['B'], sizes['V'], sizes['E']);
  }

  void launch(const PluginCall& call) const override {
    const TokenPruneParams params = kernel_params(
        node(), call.inputs, call.sizes, [&](size_t input) { return call.input_data[input]; },
        [&](size_t output) { return call.output_data[output]; });
    launch_token_prune(params, call.workspace, call.stream);
  }

  // T - V + K is between K and T. TensorRT derives the range of a sum from the ranges of its terms, so
  // without these bounds the greatest number of tokens, and the memory for it, would grow with every prune
  // layer.
  const nvinfer1::IDimensionExpr& output_dimension(const Dimension& dimension,
                                                   const Expressions& inputs) const override {
    using nvinfer1::DimensionOperation;
    const nvinfer1::IDimensionExpr& value = inputs.evaluate(dimension);
    if (dimension.terms.size() == 1) return value;
    const nvinfer1::IDimensionExpr& most =
        inputs.combine(DimensionOperation::kMIN, value, inputs.letter('T'));
    return inputs.combine(DimensionOperation::kMAX, most, inputs.letter('K'));
  }
};

}  // namespace

std::unique_ptr<ContractPlugin> make_token_prune_plugin(NodeAttributes node, std::string name) {
  return std::make_unique<TokenPrunePlugin>(std::move(node), std::move(name));
}

}  // namespace fastmmoe
