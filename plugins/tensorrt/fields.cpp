// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/fields.h"

#include <cstring>

namespace fastmmoe {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// No attribute of a contract has this name.
constexpr const char* kContractVersion = "contract_version";

// TensorRT does not promise that the data is aligned.
template <typename Value>
Value value_of(const PluginField& field) {
  Value value;
  std::memcpy(&value, field.data, sizeof value);
  return value;
}

std::string kind_of(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kFLOAT16:
    case PluginFieldType::kFLOAT32:
    case PluginFieldType::kFLOAT64:
    case PluginFieldType::kBF16:
      return "a float";
    case PluginFieldType::kINT8:
    case PluginFieldType::kINT16:
    case PluginFieldType::kINT32:
    case PluginFieldType::kINT64:
      return "an int";
    case PluginFieldType::kCHAR:
      return "a string";
    default:
      return "of plugin field type " + std::to_string(static_cast<int32_t>(type));
  }
}

PluginFieldType declared_type(AttributeKind kind) {
  switch (kind) {
    case AttributeKind::kInt:
      return PluginFieldType::kINT32;
    case AttributeKind::kFloat:
      return PluginFieldType::kFLOAT32;
    default:
      return PluginFieldType::kCHAR;
  }
}

}  // namespace

std::vector<PluginField> declared_fields(const OpContract& contract) {
  std::vector<PluginField> fields;
  for (const AttributeContract& attribute : contract.attributes) {
    fields.emplace_back(attribute.name, nullptr, declared_type(attribute.kind), 1);
  }
  return fields;
}

const PluginField* FieldAttributes::find(const char* name) const {
  for (int32_t i = 0; i < fields_.nbFields; ++i) {
    const PluginField& field = fields_.fields[i];
    if (field.data != nullptr && std::strcmp(field.name, name) == 0) return &field;
  }
  return nullptr;
}

const PluginField& FieldAttributes::scalar(const char* name, const char* kind) const {
  const PluginField* const field = find(name);
  CHECK(field != nullptr, contract_.name, ": attribute ", name, " is missing; every attribute must be given");
  const bool is_text = field->type == PluginFieldType::kCHAR;
  CHECK(is_text || field->length == 1, contract_.name, ": attribute ", name, " holds ", field->length,
        " values, expected one ", kind);
  return *field;
}

int64_t FieldAttributes::integer(const char* name) const {
  const PluginField& field = scalar(name, "int");
  switch (field.type) {
    case PluginFieldType::kINT8:
      return value_of<int8_t>(field);
    case PluginFieldType::kINT16:
      return value_of<int16_t>(field);
    case PluginFieldType::kINT32:
      return value_of<int32_t>(field);
    case PluginFieldType::kINT64:
      return value_of<int64_t>(field);
    default:
      throw_check_error(contract_.name, ": attribute ", name, " is ", kind_of(field.type),
                        ", expected an int");
  }
}

float FieldAttributes::number(const char* name) const {
  const PluginField& field = scalar(name, "float");
  switch (field.type) {
    case PluginFieldType::kFLOAT32:
      return value_of<float>(field);
    case PluginFieldType::kFLOAT64:
      return static_cast<float>(value_of<double>(field));
    default:
      throw_check_error(contract_.name, ": attribute ", name, " is ", kind_of(field.type),
                        ", expected a float");
  }
}

std::string FieldAttributes::text(const char* name) const {
  const PluginField& field = scalar(name, "string");
  CHECK(field.type == PluginFieldType::kCHAR, contract_.name, ": attribute ", name, " is ",
        kind_of(field.type), ", expected a string");
  // The parser counts the zero byte at the end, other writers may not.
  const char* const data = static_cast<const char*>(field.data);
  return std::string(data, strnlen(data, static_cast<size_t>(field.length)));
}

void FieldAttributes::check_version() const {
  CHECK(find(kContractVersion) != nullptr, contract_.name, ": the engine names no version of the operator; ",
        "it was not built with this plugin");
  const int64_t version = integer(kContractVersion);
  CHECK(version == contract_.version, contract_.name, ": the engine was built for version ", version,
        " of the operator, this library has version ", contract_.version, "; build the engine again");
}

SerializedFields::SerializedFields(const NodeAttributes& node) {
  const OpContract& contract = node.contract();
  const size_t count = contract.attributes.size();
  // Fields point to the elements, so the vectors must not move them.
  integers_.reserve(count + 1);
  numbers_.reserve(count);
  integers_.push_back(contract.version);
  fields_.emplace_back(kContractVersion, &integers_.back(), PluginFieldType::kINT64, 1);
  for (size_t i = 0; i < count; ++i) {
    const AttributeContract& attribute = contract.attributes[i];
    if (attribute.kind == AttributeKind::kFloat) {
      numbers_.push_back(node.number(i));
      fields_.emplace_back(attribute.name, &numbers_.back(), PluginFieldType::kFLOAT32, 1);
    } else if (attribute.kind == AttributeKind::kInt) {
      integers_.push_back(node.integer(i));
      fields_.emplace_back(attribute.name, &integers_.back(), PluginFieldType::kINT64, 1);
    } else {
      const char* const text = attribute.texts[static_cast<size_t>(node.integer(i))];
      const auto length = static_cast<int32_t>(std::strlen(text) + 1);
      fields_.emplace_back(attribute.name, text, PluginFieldType::kCHAR, length);
    }
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

}  // namespace fastmmoe
