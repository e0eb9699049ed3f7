// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/creator.h"

namespace fastmmoe {

ContractCreator::ContractCreator(const OpContract& contract, Maker make)
    : contract_(contract),
      make_(make),
      fields_(declared_fields(contract)),
      collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginV3* ContractCreator::createPlugin(const char* name,
                                                   const nvinfer1::PluginFieldCollection* fields,
                                                   nvinfer1::TensorRTPhase phase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(name, nullptr, [&] {
    const FieldAttributes source(contract_, *fields);
    if (phase == nvinfer1::TensorRTPhase::kRUNTIME) source.check_version();
    return make_(NodeAttributes(contract_, source), name == nullptr ? "" : name).release();
  });
}

}  // namespace fastmmoe
