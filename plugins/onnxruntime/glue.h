// SPDX-License-Identifier: Apache-2.0
// Between ONNX Runtime and the kernels: attributes and inputs read through the contract, errors, threads.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "contract/contract.h"
#include "onnxruntime/infer.h"

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

/// Throws the CheckError for an attribute that is not there or of another kind.
[[noreturn]] void throw_missing_attribute(const OpContract& contract, const char* name, const char* kind);

/// A node's attributes, and what is known of its inputs before any call.
class Node : public NodeAttributes {
 public:
  /// Throws CheckError where attributes are not the contract's.
  Node(const OpContract& contract, const OrtKernelInfo* info);

  /// Type and shape of the input at this position where it is a constant of the graph, as weights are; to ask
  /// for them in each call takes as long as a small kernel. Null of others.
  const TensorInfo* constant(size_t position) const {
    return position < constants_.size() && constants_[position] ? &*constants_[position] : nullptr;
  }

 private:
  std::vector<std::optional<TensorInfo>> constants_;
};

/// The inputs of a node, by their place in the contract.
class Inputs {
 public:
  Inputs(const Node& node, OrtKernelContext* context) : node_(node), context_(context) {}

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
  const Node& node_;
  Ort::KernelContext context_;
};

/// The outputs of a node, by their place in the contract.
class Outputs {
 public:
  Outputs(const NodeAttributes& node, const Sizes& sizes, OrtKernelContext* context)
      : node_(node), sizes_(sizes), context_(context) {}

  /// Null where the node has no such output. Throws CheckError where it should have and it is left out.
  void* data(size_t output) const;

 private:
  const NodeAttributes& node_;
  const Sizes& sizes_;
  Ort::KernelContext context_;
};

ONNXTensorElementDataType onnx_type(ElementType type);

/// ONNX Runtime's own threads of the session that runs the node.
ParallelFor parallel_for_of(OrtKernelContext* context);

/// Writes which outputs may take an input's memory that nothing else needs: those that all nodes have, as
/// only their places are the same in all of them. The return value is how many; release_aliases frees the
/// lists.
size_t list_aliases(const OpContract& contract, int** inputs, int** outputs) noexcept;
void release_aliases(int* inputs, int* outputs) noexcept;

/// A custom operator of which everything is read from the contract. Kernel has a constructor from
/// (const OrtKernelInfo*), or from that and whether it computes exactly, `void compute(OrtKernelContext*)
/// const`, `static const OpContract& contract()`, `static constexpr const char* kProvider` and `static
/// constexpr ElementType kFloatType`: what F is.
template <typename Kernel>
struct KernelHolder {
  Kernel kernel;
  OrtStatus* ComputeV2(OrtKernelContext* context) const noexcept {
    return guarded(Kernel::contract().name, [&] { kernel.compute(context); });
  }
};

template <typename Kernel>
struct CustomOp : Ort::CustomOpBase<CustomOp<Kernel>, KernelHolder<Kernel>, true> {
  explicit CustomOp(bool is_exact = false) : is_exact_(is_exact) {
    OrtCustomOp::version = std::min<uint32_t>(ORT_API_VERSION, kOrtApiVersion);
    if (has_inferred_outputs(Kernel::contract())) {
      OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) noexcept {
        return guarded(Kernel::contract().name, [&] { infer_outputs(Kernel::contract(), context); });
      };
    }
    OrtCustomOp::GetMayInplace = [](int** inputs, int** outputs) noexcept {
      return list_aliases(Kernel::contract(), inputs, outputs);
    };
    OrtCustomOp::ReleaseMayInplace = release_aliases;
  }

  OrtStatus* CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept {
    return guarded(GetName(), [&] {
      if constexpr (std::is_constructible_v<Kernel, const OrtKernelInfo*, bool>) {
        *kernel = new KernelHolder<Kernel>{Kernel(info, is_exact_)};
      } else {
        *kernel = new KernelHolder<Kernel>{Kernel(info)};
      }
    });
  }
  const char* GetName() const { return Kernel::contract().name; }
  const char* GetExecutionProviderType() const { return Kernel::kProvider; }
  size_t GetInputTypeCount() const { return Kernel::contract().inputs.size(); }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    return type_at(Kernel::contract().inputs[index]);
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return characteristic_of(Kernel::contract().inputs[index]);
  }
  size_t GetOutputTypeCount() const { return Kernel::contract().outputs.size(); }
  ONNXTensorElementDataType GetOutputType(size_t index) const {
    return type_at(Kernel::contract().outputs[index]);
  }
  OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(size_t index) const {
    return characteristic_of(Kernel::contract().outputs[index]);
  }

 private:
  bool is_exact_;

  static OrtCustomOpInputOutputCharacteristic characteristic_of(const TensorContract& tensor) {
    return tensor.attribute == kAlways ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }
  // What a place beyond those that all nodes have holds depends on the attributes; check_inputs looks at it.
  static ONNXTensorElementDataType type_at(const TensorContract& tensor) {
    return tensor.attribute == kAlways ? declared_type(tensor) : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }
  static ONNXTensorElementDataType declared_type(const TensorContract& tensor) {
    if (tensor.variable == 'F') return onnx_type(Kernel::kFloatType);
    return tensor.types.size() == 1 ? onnx_type(tensor.types[0]) : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }
};

}  // namespace fastmmoe
