// SPDX-License-Identifier: Apache-2.0
#include "testing/emulator/async_copy.h"

#include <cstring>

#include "testing/emulator/shared_memory.h"

namespace fastmmoe::emulator {

void AsyncCopies::issue(void* shared, const void* source) {
  Copy copy{shared, {}};
  if (source != nullptr) std::memcpy(copy.data.data(), source, kAsyncCopyBytes);
  copies_.push_back(copy);
  fill_poison(shared, kAsyncCopyBytes);
}

void AsyncCopies::commit() { group_ends_.push_back(copies_.size()); }

void AsyncCopies::wait(size_t pending) {
  if (group_ends_.size() <= pending) return;
  const size_t groups = group_ends_.size() - pending;
  const size_t end = group_ends_[groups - 1];
  for (size_t i = 0; i < end; ++i) std::memcpy(copies_[i].target, copies_[i].data.data(), kAsyncCopyBytes);
  copies_.erase(copies_.begin(), copies_.begin() + static_cast<ptrdiff_t>(end));
  group_ends_.erase(group_ends_.begin(), group_ends_.begin() + static_cast<ptrdiff_t>(groups));
  for (size_t& group_end : group_ends_) group_end -= end;
}

}  // namespace fastmmoe::emulator
