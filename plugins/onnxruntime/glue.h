// SPDX-License-Identifier: Apache-2.0
// Between ONNX Runtime and the kernels: attributes and inputs read through the contract, errors, threads.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "contract/contract.h"

namespace fastmmoe {

/// The newest API these sources use; the runtime may be older than the headers, down to this version.
constexpr uint32_t kOrtApiVersion = 21;
static_assert(ORT_API_VERSION >= kOrtApiVersion, "ONNX Runtime headers of API 21 or later are needed");

/// The status for memory that does not suffice; `what` needed it. Takes no memory of its own.
OrtStatus* out_of_memory(const char* what) noexcept;

/// Runs body; an exception becomes a status, as none may pass the C boundary. what: runs, for a message.
template <typename Body>
OrtStatus* guarded(const char* what, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const CheckError& error) {
    return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  } catch (const std::bad_alloc&) {
    return out_of_memory(what);
  } catch (const std::exception& error) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
  }
}

/// The attributes of a node. Throws CheckError where they are not the contract's.
NodeAttributes read_node(const OpContract& contract, const OrtKernelInfo* info);

/// The inputs of a node, by their place in the contract.
class Inputs {
 public:
  Inputs(const NodeAttributes& node, OrtKernelContext* context) : node_(node), context_(context) {}

  /// Types and shapes in the node's order. Throws CheckError where an input before the last is left out.
  std::vector<TensorInfo> infos() const;

  /// Null where the node has no such input.
  const void* data(size_t input) const {
    return node_.has(input) ? context_.GetInput(node_.position(input)).GetTensorRawData() : nullptr;
  }
  template <typename T>
  const T* data(size_t input) const {
    return static_cast<const T*>(data(input));
  }

 private:
  const NodeAttributes& node_;
  Ort::KernelContext context_;
};

/// A function from an output's place in the contract to its memory; shapes follow from the sizes. What it is
/// given must outlive it.
inline auto output_memory(const Ort::KernelContext& context, const OpContract& contract, const Sizes& sizes) {
  return [&](size_t output) {
    return context.GetOutput(output, output_shape(contract.outputs[output], sizes)).GetTensorMutableRawData();
  };
}

ONNXTensorElementDataType onnx_type(ElementType type);

/// ONNX Runtime's own threads of the session that runs the node.
ParallelFor parallel_for_of(OrtKernelContext* context);

/// A custom operator of which everything is read from the contract. Kernel has a constructor from
/// (const OrtKernelInfo*), `void compute(OrtKernelContext*) const`, `static const OpContract& contract()`,
/// `static constexpr const char* kProvider` and `static constexpr ElementType kFloatType`: what F is.
template <typename Kernel>
struct KernelHolder {
  Kernel kernel;
  OrtStatus* ComputeV2(OrtKernelContext* context) const noexcept {
    return guarded(Kernel::contract().name, [&] { kernel.compute(context); });
  }
};

template <typename Kernel>
struct CustomOp : Ort::CustomOpBase<CustomOp<Kernel>, KernelHolder<Kernel>, true> {
  CustomOp() { OrtCustomOp::version = std::min<uint32_t>(ORT_API_VERSION, kOrtApiVersion); }

  OrtStatus* CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept {
    return guarded(GetName(), [&] { *kernel = new KernelHolder<Kernel>{Kernel(info)}; });
  }
  const char* GetName() const { return Kernel::contract().name; }
  const char* GetExecutionProviderType() const { return Kernel::kProvider; }
  size_t GetInputTypeCount() const { return Kernel::contract().inputs.size(); }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    const TensorContract& input = Kernel::contract().inputs[index];
    // What a place beyond holds depends on the attributes; check_inputs looks at it.
    return is_optional(index) ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED : declared_type(input);
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return is_optional(index) ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return Kernel::contract().outputs.size(); }
  ONNXTensorElementDataType GetOutputType(size_t index) const {
    return declared_type(Kernel::contract().outputs[index]);
  }

 private:
  static bool is_optional(size_t index) { return Kernel::contract().inputs[index].attribute != kAlways; }
  static ONNXTensorElementDataType declared_type(const TensorContract& tensor) {
    if (tensor.variable == 'F') return onnx_type(Kernel::kFloatType);
    return tensor.types.size() == 1 ? onnx_type(tensor.types[0]) : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }
};

}  // namespace fastmmoe
