// SPDX-License-Identifier: Apache-2.0
// C entry point of the FmmLinear kernels for the tests.
#include "linear/cuda/kernel.h"
#include "testing/emulator/entry.h"

extern "C" {

__attribute__((visibility("default"))) const char* run_linear(const fastmmoe::LinearKernelParams* params) {
  return fastmmoe::emulator::guarded([&] { fastmmoe::launch_linear(*params, nullptr); });
}
}
