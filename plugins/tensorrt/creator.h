// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "tensorrt/plugin.h"

namespace fastmmoe {

/// Makes plugins of one operator from a node of a network, and again from what an engine stores of it.
class ContractCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  using Maker = std::unique_ptr<ContractPlugin> (*)(NodeAttributes node, std::string name);

  ContractCreator(const OpContract& contract, Maker make);

  /// Null where the fields are not the contract's, which is logged.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return contract_.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

 private:
  const OpContract& contract_;
  const Maker make_;
  const std::vector<nvinfer1::PluginField> fields_;
  const nvinfer1::PluginFieldCollection collection_;
};

}  // namespace fastmmoe
