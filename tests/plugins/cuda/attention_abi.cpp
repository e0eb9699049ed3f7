// SPDX-License-Identifier: Apache-2.0
// C entry points of the FmmAttention kernels for the tests.
#include "attention/cuda/kernel.h"
#include "testing/emulator/entry.h"

extern "C" {

__attribute__((visibility("default"))) const char* workspace_bytes(const fastmmoe::AttentionParams* params,
                                                                   size_t* bytes) {
  return fastmmoe::emulator::guarded([&] { *bytes = fastmmoe::attention_workspace_bytes(*params); });
}

__attribute__((visibility("default"))) const char* run_attention(const fastmmoe::AttentionParams* params,
                                                                 void* workspace) {
  return fastmmoe::emulator::guarded([&] { fastmmoe::launch_attention(*params, workspace, nullptr); });
}
}
