// SPDX-License-Identifier: Apache-2.0
// CHECK(condition, parts...): throws CheckError with the parts joined into one line; parts are texts and
// values.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastmmoe {

/// An input or attribute is outside the operator's contract. what() says what was found and what was
/// expected.
struct CheckError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void throw_check_error(const Parts&... parts) {
  // The constructor without a mode is missing from the C++ library of manylinux_2_28.
  std::ostringstream message(std::ios_base::out);
  (message << ... << parts);
  throw CheckError(message.str());
}

}  // namespace fastmmoe

// The parts are only evaluated where the condition is false.
#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) ::fastmmoe::throw_check_error(__VA_ARGS__); \
  } while (false)
