// SPDX-License-Identifier: Apache-2.0
// Between ONNX Runtime and the kernels: attributes and inputs read through the contract, errors, threads.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "onnxruntime/contract.h"

namespace fastmmoe {

/// The newest API these sources use; the runtime may be older than the headers, down to this version.
constexpr uint32_t kOrtApiVersion = 21;
static_assert(ORT_API_VERSION >= kOrtApiVersion, "ONNX Runtime headers of API 21 or later are needed");

/// Runs body; an exception becomes a status, as none may pass the C boundary.
template <typename Body>
OrtStatus* guarded(const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const CheckError& error) {
    return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  } catch (const std::exception& error) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
  }
}

/// Reads a node's attributes by their place in the contract. Each throws CheckError if the attribute is
/// missing, of another type or outside what the contract allows.
class Attributes {
 public:
  Attributes(const OpContract& contract, const OrtKernelInfo* info) : contract_(contract), info_(info) {}

  int64_t integer(size_t index, int64_t low, int64_t high) const;
  float number(size_t index) const;
  /// The place of the value in `choices`.
  size_t choice(size_t index, const std::vector<const char*>& choices) const;

 private:
  template <typename Value>
  Value read(size_t index, const char* type) const;

  const OpContract& contract_;
  Ort::ConstKernelInfo info_;
};

/// Reads a node's inputs by their place in the contract.
class Inputs {
 public:
  Inputs(const OpContract& contract, OrtKernelContext* context) : contract_(contract), context_(context) {}

  bool has(size_t index) const {
    return index < context_.GetInputCount() && context_.GetInput(index) != nullptr;
  }
  ONNXTensorElementDataType type(size_t index) const;
  /// Throws CheckError if the input is missing or its rank is not the contract's.
  std::vector<int64_t> shape(size_t index) const;
  /// Throws CheckError if shape(index) is another.
  void expect_shape(size_t index, const std::vector<int64_t>& expected) const;
  /// Throws CheckError unless the int32 input [V] ascends and its values are rows of T.
  void expect_rows(size_t index, int64_t T) const;

  template <typename T>
  const T* data(size_t index) const {
    return context_.GetInput(index).GetTensorData<T>();
  }
  const void* raw_data(size_t index) const { return context_.GetInput(index).GetTensorRawData(); }

 private:
  const OpContract& contract_;
  Ort::KernelContext context_;
};

/// "[2, 3]"
std::string as_text(const std::vector<int64_t>& shape);

/// ONNX Runtime's own threads of the session that runs the node.
ParallelFor parallel_for_of(OrtKernelContext* context);

/// A custom operator of which everything is read from the contract. Kernel has a constructor from
/// (const OrtKernelInfo*), `void compute(OrtKernelContext*) const` and `static const OpContract& contract()`.
template <typename Kernel>
struct KernelHolder {
  Kernel kernel;
  OrtStatus* ComputeV2(OrtKernelContext* context) const noexcept {
    return guarded([&] { kernel.compute(context); });
  }
};

template <typename Kernel>
struct CustomOp : Ort::CustomOpBase<CustomOp<Kernel>, KernelHolder<Kernel>, true> {
  CustomOp() { OrtCustomOp::version = std::min<uint32_t>(ORT_API_VERSION, kOrtApiVersion); }

  OrtStatus* CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept {
    return guarded([&] { *kernel = new KernelHolder<Kernel>{Kernel(info)}; });
  }
  const char* GetName() const { return Kernel::contract().name; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return Kernel::contract().inputs.size(); }
  ONNXTensorElementDataType GetInputType(size_t index) const { return Kernel::contract().inputs[index].type; }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return Kernel::contract().inputs[index].is_optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return Kernel::contract().outputs.size(); }
  ONNXTensorElementDataType GetOutputType(size_t index) const {
    return Kernel::contract().outputs[index].type;
  }
};

}  // namespace fastmmoe
