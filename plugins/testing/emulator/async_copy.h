// SPDX-License-Identifier: Apache-2.0
// The copies of one thread that were started by cp.async and have not landed.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

namespace fastmmoe::emulator {

constexpr size_t kAsyncCopyBytes = 16;

/// Data is captured when a copy is issued and lands only when its group is waited for. Until then the
/// destination holds poison, so that a read without a wait gives a wrong result.
class AsyncCopies {
 public:
  /// Zeros land where source is null.
  void issue(void* shared, const void* source);
  /// Closes the open group; an empty group counts too.
  void commit();
  /// Lands all but the newest `pending` committed groups.
  void wait(size_t pending);
  /// Copies that have not landed.
  size_t unfinished() const { return copies_.size(); }

 private:
  struct Copy {
    void* target;
    std::array<std::byte, kAsyncCopyBytes> data;
  };
  std::vector<Copy> copies_;        // oldest first
  std::vector<size_t> group_ends_;  // one past the last copy of each committed group
};

}  // namespace fastmmoe::emulator
