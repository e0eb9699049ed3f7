// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/plugin.h"

#include <algorithm>
#include <utility>

namespace fastmmoe {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

std::vector<TensorInfo> infos_of(const PluginTensorDesc* tensors, int32_t count) {
  std::vector<TensorInfo> infos;
  for (int32_t i = 0; i < count; ++i) {
    infos.push_back({element_type(tensors[i].type), shape_of(tensors[i].dims)});
  }
  return infos;
}

/// With the dimensions that a profile names opt or max.
std::vector<TensorInfo> infos_of(const DynamicPluginTensorDesc* tensors, int32_t count,
                                 nvinfer1::Dims DynamicPluginTensorDesc::* which) {
  std::vector<TensorInfo> infos;
  for (int32_t i = 0; i < count; ++i) {
    infos.push_back({element_type(tensors[i].desc.type), shape_of(tensors[i].*which)});
  }
  return infos;
}

/// The greatest value of each letter. TensorRT bounds each tensor alone, so tensors may differ in a letter
/// that they share. Throws CheckError for a size that no request may have.
Sizes greatest_sizes(const NodeAttributes& node, const std::vector<TensorInfo>& inputs) {
  Sizes sizes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TensorContract& tensor = node.contract().inputs[node.inputs()[i]];
    const std::vector<Dimension>& shape = tensor.shape;
    for (size_t d = 0; d < shape.size(); ++d) {
      if (shape[d].divisor != 0 || shape[d].terms.size() != 1) continue;
      const auto [factor, letter] = shape[d].terms[0];
      const int64_t value = (inputs[i].shape[d] - shape[d].number) / factor;
      check_size(node.contract(), letter, value, tensor, inputs[i].shape);
      sizes.set(letter, std::max(sizes[letter], value));
    }
  }
  return sizes;
}

}  // namespace

ContractPlugin::ContractPlugin(NodeAttributes node, std::string name)
    : node_(std::move(node)), name_(std::move(name)), fields_(node_) {}

nvinfer1::IPluginCapability* ContractPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* ContractPlugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return copy().release(); });
}

nvinfer1::IPluginV3* ContractPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

const nvinfer1::PluginFieldCollection* ContractPlugin::getFieldsToSerialize() noexcept {
  return fields_.collection();
}

int32_t ContractPlugin::getNbOutputs() const noexcept { return static_cast<int32_t>(node_.outputs().size()); }

int32_t ContractPlugin::getAliasedInput(int32_t output_position) noexcept {
  const int alias = output(output_position).alias;
  return alias == kNoAlias ? -1 : static_cast<int32_t>(node_.position(static_cast<size_t>(alias)));
}

const TensorContract& ContractPlugin::tensor(size_t position) const {
  const std::vector<size_t>& inputs = node_.inputs();
  return position < inputs.size() ? node_.contract().inputs[inputs[position]]
                                  : output(static_cast<int32_t>(position - inputs.size()));
}

const TensorContract& ContractPlugin::output(int32_t position) const {
  return node_.contract().outputs[node_.outputs()[static_cast<size_t>(position)]];
}

void ContractPlugin::check_types(const std::vector<ElementType>& types) const {
  TypeChecker checker(node_.contract());
  for (size_t i = 0; i < types.size(); ++i) {
    checker.check(tensor(i), types[i]);
    // The first input of every operator is one of type F.
    check_kernel_type(tensor(i), types[i], types[0]);
  }
}

void ContractPlugin::check_request(const std::vector<TensorInfo>& inputs) const {
  check_inputs(inputs);
  std::vector<ElementType> types;
  for (const TensorInfo& input : inputs) types.push_back(input.type);
  check_types(types);
}

int32_t ContractPlugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                           int32_t input_count) const noexcept {
  return status_of([&] {
    for (int32_t i = 0; i < output_count; ++i) {
      const int source = node_.type_source(output(i));
      // getOutputShapes refuses another number of inputs than the node's.
      outputs[i] = 0 <= source && source < input_count ? inputs[source] : data_type(output(i).types[0]);
    }
  });
}

int32_t ContractPlugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*,
                                        int32_t, DimsExprs* outputs, int32_t output_count,
                                        nvinfer1::IExprBuilder& builder) noexcept {
  return status_of([&] {
    const Expressions expressions(node_, inputs, input_count, builder);
    for (int32_t i = 0; i < output_count; ++i) {
      const std::vector<Dimension>& shape = output(i).shape;
      outputs[i].nbDims = static_cast<int32_t>(shape.size());
      for (size_t d = 0; d < shape.size(); ++d) outputs[i].d[d] = &output_dimension(shape[d], expressions);
    }
  });
}

bool ContractPlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                               int32_t input_count, int32_t) noexcept {
  if (tensors[position].desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
  // An error, as networks are strongly typed: there is no other type that the builder could ask for.
  return guarded(false, [&] {
    check_input_count(node_, input_count);
    std::vector<ElementType> types;
    for (int32_t i = 0; i <= position; ++i) types.push_back(element_type(tensors[i].desc.type));
    check_types(types);
    return true;
  });
}

size_t ContractPlugin::greatest_workspace(const DynamicPluginTensorDesc* inputs, int32_t input_count) const {
  const std::vector<TensorInfo> infos = infos_of(inputs, input_count, &DynamicPluginTensorDesc::max);
  return workspace_bytes(infos, greatest_sizes(node_, infos));
}

int32_t ContractPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                        const DynamicPluginTensorDesc*, int32_t) noexcept {
  return status_of([&] {
    // The least and greatest sizes of a profile need not go together, only the optimal ones are a request.
    check_request(infos_of(inputs, input_count, &DynamicPluginTensorDesc::opt));
    greatest_workspace(inputs, input_count);
  });
}

size_t ContractPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                        const DynamicPluginTensorDesc*, int32_t) const noexcept {
  // Whatever fails here has failed in configurePlugin.
  return guarded(size_t{0}, [&] { return greatest_workspace(inputs, input_count); });
}

int32_t ContractPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count,
                                      const PluginTensorDesc*, int32_t) noexcept {
  return status_of([&] { check_request(infos_of(inputs, input_count)); });
}

int32_t ContractPlugin::enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*,
                                const void* const* input_data, void* const* output_data, void* workspace,
                                cudaStream_t stream) noexcept {
  return status_of([&] {
    const std::vector<TensorInfo> infos = infos_of(inputs, static_cast<int32_t>(node_.inputs().size()));
    const Sizes sizes = check_inputs(infos);
    launch({infos, sizes, input_data, output_data, workspace, stream});
  });
}

}  // namespace fastmmoe
