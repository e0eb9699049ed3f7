// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <functional>

namespace fastmmoe::emulator {

/// Runs body once for each CUDA thread of the grid and returns when all have ended; blocks run side by side
/// on several OS threads. Throws EmulatorError where the launch is not allowed on the current architecture or
/// a block broke a rule; with more than one fault, the one of the first block in the grid that was seen.
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            const std::function<void()>& body);

}  // namespace fastmmoe::emulator
