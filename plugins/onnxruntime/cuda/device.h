// SPDX-License-Identifier: Apache-2.0
// The CUDA execution provider's stream and memory during a call of a kernel.
#pragma once

#include <cuda_runtime_api.h>
#include <onnxruntime_cxx_api.h>

#include <cstddef>

namespace fastmmoe {

/// The emulated build runs the same code in host memory, so ONNX Runtime's CPU provider can test it.
#ifdef FASTMMOE_EMULATOR
constexpr const char* kCudaProvider = "CPUExecutionProvider";
#else
constexpr const char* kCudaProvider = "CUDAExecutionProvider";
#endif

inline cudaStream_t stream_of(OrtKernelContext* context) {
  return static_cast<cudaStream_t>(Ort::KernelContext(context).GetGPUComputeStream());
}

/// Device memory until the end of the call. The provider's allocator hands it out again only to work that
/// comes later in the same stream, so the kernels that use it need not have ended.
class Workspace {
 public:
  /// In the memory that holds the node's first input. Throws Ort::Exception where there is none left.
  Workspace(OrtKernelContext* context, size_t bytes) {
    const Ort::KernelContext kernel(context);
    const auto memory = kernel.GetInput(0).GetTensorMemoryInfo();
    allocator_ = kernel.GetAllocator(*memory);
    if (bytes > 0) data_ = allocator_->Alloc(allocator_, bytes);
    if (bytes > 0 && data_ == nullptr) {
      Ort::GetApi().ReleaseAllocator(allocator_);
      throw Ort::Exception("no " + std::to_string(bytes) + " bytes of device memory for the workspace",
                           ORT_RUNTIME_EXCEPTION);
    }
  }
  ~Workspace() {
    if (data_ != nullptr) allocator_->Free(allocator_, data_);
    Ort::GetApi().ReleaseAllocator(allocator_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  OrtAllocator* allocator_;
  void* data_ = nullptr;
};

}  // namespace fastmmoe
