// SPDX-License-Identifier: Apache-2.0
// Attributes of a node as TensorRT's plugin fields: declared, read and serialized.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "contract/contract.h"

namespace fastmmoe {

/// One field for each attribute, with the type in which TensorRT's ONNX parser passes it: an ONNX int always
/// comes as kINT32. Only declared attributes come at all.
std::vector<nvinfer1::PluginField> declared_fields(const OpContract& contract);

/// Reads attributes from fields of any integer or floating-point type, as the parser or `SerializedFields`
/// wrote them.
class FieldAttributes : public AttributeSource {
 public:
  FieldAttributes(const OpContract& contract, const nvinfer1::PluginFieldCollection& fields)
      : contract_(contract), fields_(fields) {}

  int64_t integer(const char* name) const override;
  float number(const char* name) const override;
  std::string text(const char* name) const override;

  /// Throws CheckError unless the fields were serialized for the same version of the contract.
  void check_version() const;

 private:
  const nvinfer1::PluginField* find(const char* name) const;
  const nvinfer1::PluginField& scalar(const char* name, const char* kind) const;

  const OpContract& contract_;
  const nvinfer1::PluginFieldCollection& fields_;
};

/// What an engine stores of a node: its attributes and the version of the contract.
class SerializedFields {
 public:
  explicit SerializedFields(const NodeAttributes& node);
  SerializedFields(const SerializedFields&) = delete;
  SerializedFields& operator=(const SerializedFields&) = delete;

  /// Lives as long as this object.
  const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

 private:
  // The fields point into these.
  std::vector<int64_t> integers_;
  std::vector<float> numbers_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace fastmmoe
