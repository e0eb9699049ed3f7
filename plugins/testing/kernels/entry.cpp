// SPDX-License-Identifier: Apache-2.0
// C entry points of every kernel, for callers without a framework: scripts/gpu_acceptance.py, through ctypes.
// Compiled by nvcc for a GPU and, from the same source, against the emulator, where `stream` is not looked
// at. Each returns null, or what went wrong, valid until the next call on this thread.
#include "testing/emulator/entry.h"

#include "attention/cuda/kernel.h"
#include "linear/cuda/kernel.h"
#include "sparse_moe/cuda/kernel.h"
#include "token_prune/cuda/kernel.h"

#define EXPORTED __attribute__((visibility("default")))

using fastmmoe::emulator::guarded;

extern "C" {

EXPORTED const char* fmm_attention_workspace(const fastmmoe::AttentionParams* params, size_t* bytes) {
  return guarded([&] { *bytes = fastmmoe::attention_workspace_bytes(*params); });
}

EXPORTED const char* fmm_attention(const fastmmoe::AttentionParams* params, void* workspace, void* stream) {
  return guarded([&] { fastmmoe::launch_attention(*params, workspace, static_cast<cudaStream_t>(stream)); });
}

EXPORTED const char* fmm_linear_workspace(const fastmmoe::LinearKernelParams* params, size_t* bytes) {
  return guarded([&] {
    fastmmoe::check_linear(*params);
    *bytes = 0;
  });
}

EXPORTED const char* fmm_linear(const fastmmoe::LinearKernelParams* params, void*, void* stream) {
  return guarded([&] { fastmmoe::launch_linear(*params, static_cast<cudaStream_t>(stream)); });
}

EXPORTED const char* fmm_sparse_moe_workspace(const fastmmoe::SparseMoeKernelParams* params, size_t* bytes) {
  return guarded([&] { *bytes = fastmmoe::sparse_moe_workspace_bytes(*params); });
}

EXPORTED const char* fmm_sparse_moe(const fastmmoe::SparseMoeKernelParams* params, void* workspace,
                                    void* stream) {
  return guarded([&] { fastmmoe::launch_sparse_moe(*params, workspace, static_cast<cudaStream_t>(stream)); });
}

EXPORTED const char* fmm_token_prune_workspace(const fastmmoe::TokenPruneParams* params, size_t* bytes) {
  return guarded([&] { *bytes = fastmmoe::token_prune_workspace_bytes(params->B, params->V, params->E); });
}

EXPORTED const char* fmm_token_prune(const fastmmoe::TokenPruneParams* params, void* workspace,
                                     void* stream) {
  return guarded(
      [&] { fastmmoe::launch_token_prune(*params, workspace, static_cast<cudaStream_t>(stream)); });
}
}
