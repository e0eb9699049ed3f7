// SPDX-License-Identifier: Apache-2.0
// C entry points of the FmmTokenPrune kernel for the tests.
#include <exception>
#include <string>

#include "common/cuda/launch.h"
#include "token_prune/kernel.h"
#include "token_prune/select.cuh"

extern "C" {

__attribute__((visibility("default"))) size_t workspace_bytes(int64_t V, int64_t E) {
  return fastmmoe::token_prune_workspace_bytes(V, E);
}

__attribute__((visibility("default"))) uint32_t order_bits(float value) {
  return fastmmoe::token_prune::order_bits(value);
}

/// Null, or what was thrown; the text lives until the next call.
__attribute__((visibility("default"))) const char* run_token_prune(const fastmmoe::TokenPruneParams* params,
                                                                   void* workspace, int max_blocks) {
  static thread_local std::string message;
  try {
    fastmmoe::launch_token_prune(*params, workspace, nullptr, max_blocks);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
}
