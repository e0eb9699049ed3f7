// SPDX-License-Identifier: Apache-2.0
// C entry points of the FmmSparseMoE kernels for the tests.
#include <exception>
#include <string>

#include "sparse_moe/kernel.h"

extern "C" {

__attribute__((visibility("default"))) size_t workspace_bytes(const fastmmoe::SparseMoeKernelParams* params) {
  return fastmmoe::sparse_moe_workspace_bytes(*params);
}

/// Null, or what was thrown; the text lives until the next call.
__attribute__((visibility("default"))) const char* run_sparse_moe(
    const fastmmoe::SparseMoeKernelParams* params, void* workspace) {
  static thread_local std::string message;
  try {
    fastmmoe::launch_sparse_moe(*params, workspace, nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
}
