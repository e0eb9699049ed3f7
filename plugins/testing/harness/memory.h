// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "common/check.h"

namespace fastmmoe::harness {

/// Memory filled with a byte, between two zones that hold it too; aligned as TensorRT's own.
class GuardedMemory {
 public:
  GuardedMemory(size_t bytes, uint8_t fill)
      : bytes_(bytes), fill_(fill), memory_(bytes + 2 * kGuard + kAlignment, fill) {
    const auto start = reinterpret_cast<uintptr_t>(memory_.data()) + kGuard;
    before_ = kGuard + (kAlignment - start % kAlignment) % kAlignment;
  }

  uint8_t* data() { return memory_.data() + before_; }

  /// Throws CheckError where a guard zone was written.
  void check_guards(const std::string& what) const {
    const auto is_intact = [&](uint8_t byte) { return byte == fill_; };
    const auto begin = memory_.begin() + static_cast<ptrdiff_t>(before_);
    CHECK(std::all_of(memory_.begin(), begin, is_intact), "harness: written before ", what);
    CHECK(std::all_of(begin + static_cast<ptrdiff_t>(bytes_), memory_.end(), is_intact),
          "harness: written behind the ", bytes_, " bytes of ", what);
  }

  /// Throws CheckError where the memory no longer equals `expected`.
  void check_equals(const void* expected, const std::string& what) {
    CHECK(std::memcmp(data(), expected, bytes_) == 0, "harness: ", what, " was written");
  }

 private:
  static constexpr size_t kAlignment = 256;
  static constexpr size_t kGuard = 16384;
  size_t bytes_, before_ = 0;
  uint8_t fill_;
  std::vector<uint8_t> memory_;
};

}  // namespace fastmmoe::harness
