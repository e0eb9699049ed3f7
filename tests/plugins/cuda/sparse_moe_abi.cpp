// SPDX-License-Identifier: Apache-2.0
// C entry points of the FmmSparseMoE kernels for the tests.
#include "sparse_moe/cuda/kernel.h"
#include "testing/emulator/entry.h"

extern "C" {

__attribute__((visibility("default"))) const char* workspace_bytes(
    const fastmmoe::SparseMoeKernelParams* params, size_t* bytes) {
  return fastmmoe::emulator::guarded([&] { *bytes = fastmmoe::sparse_moe_workspace_bytes(*params); });
}

__attribute__((visibility("default"))) const char* run_sparse_moe(
    const fastmmoe::SparseMoeKernelParams* params, void* workspace) {
  return fastmmoe::emulator::guarded([&] { fastmmoe::launch_sparse_moe(*params, workspace, nullptr); });
}
}
