// SPDX-License-Identifier: Apache-2.0
// C entry points of the FmmTokenPrune kernel for the tests.
#include "common/cuda/device.cuh"
#include "testing/emulator/entry.h"
#include "token_prune/cuda/kernel.h"

extern "C" {

__attribute__((visibility("default"))) size_t workspace_bytes(int64_t B, int64_t V, int64_t E) {
  return fastmmoe::token_prune_workspace_bytes(B, V, E);
}

__attribute__((visibility("default"))) uint32_t order_bits(float value) {
  return fastmmoe::order_bits(value);
}

__attribute__((visibility("default"))) const char* run_token_prune(const fastmmoe::TokenPruneParams* params,
                                                                   void* workspace, int max_blocks) {
  return fastmmoe::emulator::guarded(
      [&] { fastmmoe::launch_token_prune(*params, workspace, nullptr, max_blocks); });
}
}
