// SPDX-License-Identifier: Apache-2.0
// A node as TensorRT sees it. Everything but the kernel is read from the contract.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "contract/contract.h"
#include "tensorrt/fields.h"
#include "tensorrt/log.h"
#include "tensorrt/tensors.h"

namespace fastmmoe {

/// How a plugin is named beside its operator.
constexpr const char* kPluginNamespace = "fastmmoe";
constexpr const char* kPluginVersion = "1";

/// One call of a node's kernel.
struct PluginCall {
  const std::vector<TensorInfo>& inputs;  // in the node's order
  const Sizes& sizes;
  const void* const* input_data;  // device memory, in the node's order
  void* const* output_data;
  void* workspace;
  cudaStream_t stream;
};

/// A derived class names the operator's checks and its kernel. No method that TensorRT calls throws: what is
/// refused is logged in one line and returned as failure. Nothing is kept between calls, so a plugin may
/// serve any shapes, and each clone any context.
class ContractPlugin : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuildV2,
                       public nvinfer1::IPluginV3OneRuntime {
 public:
  /// name: of the node in the network, for messages.
  ContractPlugin(NodeAttributes node, std::string name);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept final;
  nvinfer1::IPluginV3* clone() noexcept final;

  const char* getPluginName() const noexcept final { return node_.contract().name; }
  const char* getPluginVersion() const noexcept final { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept final { return kPluginNamespace; }

  int32_t getNbOutputs() const noexcept final;
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count,
                             const nvinfer1::DataType* inputs, int32_t input_count) const noexcept final;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept final;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept final;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) noexcept final;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) const noexcept final;

  /// The input whose address an output has by the contract, or -1. TensorRT asks where a network was built
  /// with kALIASED_PLUGIN_IO_10_03.
  int32_t getAliasedInput(int32_t output) noexcept final;

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs, int32_t output_count) noexcept final;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc* outputs,
                  const void* const* input_data, void* const* output_data, void* workspace,
                  cudaStream_t stream) noexcept final;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept final;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept final;

 protected:
  const NodeAttributes& node() const { return node_; }
  const std::string& name() const { return name_; }

 private:
  virtual std::unique_ptr<ContractPlugin> copy() const = 0;

  /// Throws CheckError for a type that the contract allows and the kernel does not take. F: that of the
  /// tensors of type F.
  virtual void check_kernel_type(const TensorContract& tensor, ElementType type, ElementType F) const = 0;

  /// As check_inputs of the operator's node.h.
  virtual Sizes check_inputs(const std::vector<TensorInfo>& inputs) const = 0;

  /// Enough for these sizes and all smaller ones.
  virtual size_t workspace_bytes(const std::vector<TensorInfo>& inputs, const Sizes& sizes) const = 0;

  virtual void launch(const PluginCall& call) const = 0;

  /// The dimension of an output; overridden where bounds are known that TensorRT cannot derive.
  virtual const nvinfer1::IDimensionExpr& output_dimension(const Dimension& dimension,
                                                           const Expressions& inputs) const {
    return inputs.evaluate(dimension);
  }

  const TensorContract& tensor(size_t position) const;
  const TensorContract& output(int32_t position) const;
  void check_types(const std::vector<ElementType>& types) const;
  void check_request(const std::vector<TensorInfo>& inputs) const;
  size_t greatest_workspace(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count) const;

  template <typename Result, typename Body>
  Result guarded(Result failure, const Body& body) const noexcept {
    return fastmmoe::guarded(name_.c_str(), failure, body);
  }
  /// 0 where body returned, -1 where it threw.
  template <typename Body>
  int32_t status_of(const Body& body) const noexcept {
    return guarded(-1, [&] {
      body();
      return 0;
    });
  }

  const NodeAttributes node_;
  const std::string name_;
  const SerializedFields fields_;
};

}  // namespace fastmmoe
