// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/glue.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <mutex>
#include <new>
#include <stdexcept>

namespace fastmmoe {

namespace {

class OrtAttributes : public AttributeSource {
 public:
  OrtAttributes(const OpContract& contract, const OrtKernelInfo* info) : contract_(contract), info_(info) {}

  int64_t integer(const char* name) const override { return read<int64_t>(name, "int"); }
  float number(const char* name) const override { return read<float>(name, "float"); }
  std::string text(const char* name) const override { return read<std::string>(name, "string"); }

 private:
  template <typename Value>
  Value read(const char* name, const char* kind) const {
    try {
      return info_.GetAttribute<Value>(name);
    } catch (const Ort::Exception&) {
      throw_missing_attribute(contract_, name, kind);
    }
  }

  const OpContract& contract_;
  Ort::ConstKernelInfo info_;
};

struct OnnxType {
  ElementType type;
  ONNXTensorElementDataType onnx;
};
constexpr OnnxType kOnnxTypes[] = {{ElementType::kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
                                   {ElementType::kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
                                   {ElementType::kBfloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16},
                                   {ElementType::kInt8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},
                                   {ElementType::kInt32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32}};

// Throws CheckError for a type that no operator has.
TensorInfo info_of(const OpContract& contract, size_t position, const Ort::ConstValue& value) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  const auto* entry = std::find_if(std::begin(kOnnxTypes), std::end(kOnnxTypes), [&](const OnnxType& known) {
    return known.onnx == info.GetElementType();
  });
  CHECK(entry != std::end(kOnnxTypes), contract.name, ": input ", position, " has ONNX element type ",
        info.GetElementType(), ", which no input of the operator may have");
  return {entry->type, info.GetShape()};
}

}  // namespace

OrtStatus* out_of_memory(const char* what) noexcept {
  std::array<char, 128> message;
  std::snprintf(message.data(), message.size(), "%s: memory does not suffice", what);
  return Ort::GetApi().CreateStatus(ORT_FAIL, message.data());
}

void throw_missing_attribute(const OpContract& contract, const char* name, const char* kind) {
  throw_check_error(contract.name, ": attribute ", name, " is missing or no ", kind,
                    "; every attribute must be given");
}

Node::Node(const OpContract& contract, const OrtKernelInfo* info)
    : NodeAttributes(contract, OrtAttributes(contract, info)) {
  const Ort::ConstKernelInfo of_kernel(info);
  for (size_t i = 0; i < of_kernel.GetInputCount(); ++i) {
    int is_constant = 0;
    const Ort::ConstValue value = of_kernel.GetTensorConstantInput(i, &is_constant);
    constants_.emplace_back();
    if (is_constant != 0) constants_.back() = info_of(contract, i, value);
  }
}

ONNXTensorElementDataType onnx_type(ElementType type) {
  for (const OnnxType& entry : kOnnxTypes) {
    if (entry.type == type) return entry.onnx;
  }
  throw_check_error("no ONNX type for the element type ", name_of(type));
}

std::vector<TensorInfo> Inputs::infos() const {
  const OpContract& contract = node_.contract();
  const size_t count = context_.GetInputCount();
  std::vector<TensorInfo> infos;
  infos.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const TensorInfo* constant = node_.constant(i);
    const Ort::ConstValue value = constant == nullptr ? context_.GetInput(i) : Ort::ConstValue();
    if (constant == nullptr && value == nullptr) continue;  // left out: check_inputs counts
    CHECK(infos.size() == i, contract.name, ": input ", infos.size(),
          " is left out before others, expected no gap");
    infos.push_back(constant == nullptr ? info_of(contract, i, value) : *constant);
  }
  return infos;
}

void* Outputs::data(size_t output) const {
  if (!node_.has_output(output)) return nullptr;
  const OpContract& contract = node_.contract();
  const size_t position = node_.output_position(output);
  const TensorContract& tensor = contract.outputs[output];
  CHECK(position < context_.GetOutputCount(), contract.name, ": output ", position, " is left out, expected ",
        tensor.name);
  Ort::UnownedValue value = context_.GetOutput(position, output_shape(tensor, sizes_));
  CHECK(value != nullptr, contract.name, ": output ", position, " is left out, expected ", tensor.name);
  return value.GetTensorMutableRawData();
}

size_t list_aliases(const OpContract& contract, int** inputs, int** outputs) noexcept {
  const size_t most = contract.outputs.size();
  *inputs = static_cast<int*>(std::calloc(most, sizeof(int)));
  *outputs = static_cast<int*>(std::calloc(most, sizeof(int)));
  size_t count = 0;
  for (size_t i = 0; i < most && *inputs != nullptr && *outputs != nullptr; ++i) {
    const TensorContract& output = contract.outputs[i];
    if (output.alias == kNoAlias || output.attribute != kAlways) continue;
    (*inputs)[count] = output.alias;
    (*outputs)[count++] = static_cast<int>(i);
  }
  return count;
}

void release_aliases(int* inputs, int* outputs) noexcept {
  std::free(inputs);
  std::free(outputs);
}

namespace {

struct Loop {
  const std::function<void(int64_t)>* body;
  std::mutex mutex;
  bool lacks_memory;
  std::array<char, 256> error;
};

// Called by ONNX Runtime's threads, which an exception would end. What it says is kept, not an
// exception_ptr: that needs functions which the C++ library of manylinux_2_28 lacks.
void run_item(void* data, size_t item) {
  Loop& loop = *static_cast<Loop*>(data);
  try {
    (*loop.body)(static_cast<int64_t>(item));
  } catch (const std::bad_alloc&) {
    const std::lock_guard<std::mutex> lock(loop.mutex);
    loop.lacks_memory = true;
  } catch (const std::exception& error) {
    const std::lock_guard<std::mutex> lock(loop.mutex);
    std::snprintf(loop.error.data(), loop.error.size(), "%s", error.what());
  }
}

}  // namespace

ParallelFor parallel_for_of(OrtKernelContext* context) {
  return [context](int64_t count, const std::function<void(int64_t)>& body) {
    if (count == 0) return;
    Loop loop{&body, {}, false, {}};
    // As many batches as items: threads take one after the other, where fewer batches would be divided
    // beforehand.
    Ort::KernelContext(context).ParallelFor(run_item, static_cast<size_t>(count), static_cast<size_t>(count),
                                            &loop);
    if (loop.lacks_memory) throw std::bad_alloc();
    if (loop.error[0] != '\0') throw std::runtime_error(loop.error.data());
  };
}

}  // namespace fastmmoe
