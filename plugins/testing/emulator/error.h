// SPDX-License-Identifier: Apache-2.0
// What the emulator reports, and where in the kernel's source it happened.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace fastmmoe::emulator {

/// A kernel or its launch broke a rule of CUDA. what() is one line: kernel, block, thread, what was found.
struct EmulatorError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A place in a kernel. As a default argument it is the place of the call.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

inline bool operator==(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::string_view(a.file) == b.file);
}
inline bool operator!=(const Site& a, const Site& b) { return !(a == b); }

/// "kernel.cu:12": the folder is left out.
std::string to_string(const Site& site);

}  // namespace fastmmoe::emulator
