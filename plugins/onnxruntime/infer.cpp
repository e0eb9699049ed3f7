// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/infer.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "onnxruntime/glue.h"

namespace fastmmoe {
namespace {

using Shape = Ort::ShapeInferContext::Shape;

class InferAttributes : public AttributeSource {
  template <typename Read>
  auto read(const char* name, const char* kind, const Read& read_value) const {
    try {
      return read_value();
    } catch (const Ort::Exception&) {
      throw_missing_attribute(contract_, name, kind);
    }
  }

 public:
  InferAttributes(const OpContract& contract, Ort::ShapeInferContext& context)
      : contract_(contract), context_(context) {}

  int64_t integer(const char* name) const override {
    return read(name, "int", [&] { return context_.GetAttrInt(name); });
  }
  float number(const char* name) const override {
    return read(name, "float", [&] { return context_.GetAttrFloat(name); });
  }
  std::string text(const char* name) const override {
    return read(name, "string", [&] { return context_.GetAttrString(name); });
  }

 private:
  const OpContract& contract_;
  Ort::ShapeInferContext& context_;
};

ONNXTensorElementDataType type_of_input(OrtShapeInferContext* context, size_t position) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Ort::ThrowOnError(Ort::GetApi().ShapeInferContext_GetInputTypeShape(context, position, &info));
  auto type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Ort::ThrowOnError(Ort::GetApi().GetTensorElementType(info, &type));  // the context owns the info
  return type;
}

// ShapeInferContext::SetOutputShape of the headers gives unknown dimensions a size that newer runtimes
// refuse.
void set_output(OrtShapeInferContext* context, size_t position, ONNXTensorElementDataType type,
                const Shape& shape) {
  const OrtApi& api = Ort::GetApi();
  std::vector<int64_t> sizes;
  std::vector<const char*> names;
  for (const auto& dimension : shape) {
    sizes.push_back(dimension.IsInt() ? dimension.AsInt() : -1);
    names.push_back(dimension.IsInt() ? "" : dimension.AsSym());
  }
  OrtTensorTypeAndShapeInfo* created = nullptr;
  Ort::ThrowOnError(api.CreateTensorTypeAndShapeInfo(&created));
  const Ort::TensorTypeAndShapeInfo info(created);  // releases it
  Ort::ThrowOnError(api.SetTensorElementType(info, type));
  Ort::ThrowOnError(api.SetDimensions(info, sizes.data(), sizes.size()));
  Ort::ThrowOnError(api.SetSymbolicDimensions(info, names.data(), names.size()));
  Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, position, info));
}

// Dimensions that are one letter, by what the inputs have there.
class Dimensions {
 public:
  Dimensions(const NodeAttributes& node, const Ort::ShapeInferContext& context) {
    const size_t count = std::min(node.inputs().size(), context.GetInputCount());
    for (size_t i = 0; i < count; ++i) {
      const TensorContract& tensor = node.contract().inputs[node.inputs()[i]];
      const Shape& shape = context.GetInputShape(i);
      for (size_t d = 0; d < tensor.shape.size() && shape.size() == tensor.shape.size(); ++d) {
        if (shape[d].IsInt() && shape[d].AsInt() < 0) continue;
        known_.emplace(tensor.shape[d].text, shape[d]);
      }
    }
  }

  Shape shape_of(const TensorContract& tensor) {
    Shape shape;
    for (const Dimension& dimension : tensor.shape) {
      const auto found = known_.find(dimension.text);
      shape.push_back(found == known_.end() ? unknown() : found->second);
    }
    return shape;
  }

 private:
  // One name for two dimensions would say that they are equal.
  Ort::ShapeInferContext::SymbolicInteger unknown() {
    static std::atomic<int64_t> count{0};
    names_.push_back("fastmmoe_" + std::to_string(count++));
    return names_.back().c_str();
  }

  std::map<std::string, Ort::ShapeInferContext::SymbolicInteger> known_;
  std::deque<std::string> names_;
};

}  // namespace

bool has_inferred_outputs(const OpContract& contract) {
  return std::any_of(contract.outputs.begin(), contract.outputs.end(), [](const TensorContract& output) {
    return output.attribute != kAlways || (output.variable != 'F' && output.types.size() > 1);
  });
}

void infer_outputs(const OpContract& contract, OrtShapeInferContext* context) {
  Ort::ShapeInferContext reader(&Ort::GetApi(), context);
  const NodeAttributes node(contract, InferAttributes(contract, reader));
  Dimensions dimensions(node, reader);
  for (size_t i = 0; i < node.outputs().size(); ++i) {
    const TensorContract& output = contract.outputs[node.outputs()[i]];
    const int source = node.type_source(output);
    const bool is_known = 0 <= source && source < static_cast<int>(reader.GetInputCount());
    set_output(context, i,
               is_known ? type_of_input(context, static_cast<size_t>(source)) : onnx_type(output.types[0]),
               dimensions.shape_of(output));
  }
}

}  // namespace fastmmoe
