// SPDX-License-Identifier: Apache-2.0
// For the C functions through which tests reach kernels; nothing here needs CUDA.
#pragma once

#include <exception>
#include <string>

namespace fastmmoe::emulator {

/// Calls body; null where it returned, else what() of its exception, valid until the next call on this
/// thread.
template <typename Body>
const char* guarded(Body&& body) noexcept {
  static thread_local std::string message;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace fastmmoe::emulator
