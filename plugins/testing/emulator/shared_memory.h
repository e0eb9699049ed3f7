// SPDX-License-Identifier: Apache-2.0
// Shared memory of the block that an OS thread runs.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace fastmmoe::emulator {

/// Fills memory with 0xffe5 in each 16 bits: NaN as float, half and bfloat16, far from 0 as an integer.
void fill_poison(void* memory, size_t bytes);

/// Dynamic shared memory between two guard zones, and the __shared__ variables, which are the thread-local
/// variables of the library that holds kernel and emulator. Belongs to the OS thread that made it.
class SharedMemory {
 public:
  explicit SharedMemory(size_t dynamic_bytes);

  /// As at the start of a block: nothing of an earlier block is left.
  void poison();
  void* dynamic() const { return dynamic_; }
  /// Whether the bytes lie in dynamic shared memory or __shared__ variables.
  bool contains(const void* address, size_t bytes) const;
  /// Which byte outside of dynamic shared memory was written first; empty where none was.
  std::string broken_guard() const;

 private:
  size_t dynamic_bytes_;
  std::vector<std::byte> memory_;
  std::byte* dynamic_;
  std::byte* static_ = nullptr;
  size_t static_bytes_ = 0;
};

}  // namespace fastmmoe::emulator
