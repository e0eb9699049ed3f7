// SPDX-License-Identifier: Apache-2.0
#include "testing/emulator/shared_memory.h"

#include <link.h>

#include <cstdint>

#include "testing/emulator/block.h"

namespace fastmmoe::emulator {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr size_t kAlignment = 1024;

std::byte poison_at(const std::byte* address) {
  return reinterpret_cast<uintptr_t>(address) % 2 == 0 ? std::byte{0xe5} : std::byte{0xff};
}

struct ThreadLocals {
  std::byte* begin;
  size_t bytes;
};

// Looks for the library whose thread-local variables include thread_state: the one of the kernel.
int find_thread_locals(dl_phdr_info* info, size_t, void* result) {
  auto* begin = static_cast<std::byte*>(info->dlpi_tls_data);
  if (begin == nullptr) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
    const size_t bytes = info->dlpi_phdr[i].p_memsz;
    const auto* state = reinterpret_cast<const std::byte*>(&thread_state);
    if (state < begin || state >= begin + bytes) continue;
    *static_cast<ThreadLocals*>(result) = {begin, bytes};
    return 1;
  }
  return 0;
}

}  // namespace

void fill_poison(void* memory, size_t bytes) {
  auto* begin = static_cast<std::byte*>(memory);
  for (size_t i = 0; i < bytes; ++i) begin[i] = poison_at(begin + i);
}

SharedMemory::SharedMemory(size_t dynamic_bytes)
    : dynamic_bytes_(dynamic_bytes), memory_(dynamic_bytes + 2 * kGuardBytes + kAlignment) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory_.data()) + kGuardBytes;
  dynamic_ = memory_.data() + kGuardBytes + (kAlignment - first % kAlignment) % kAlignment;
  ThreadLocals found{nullptr, 0};
  dl_iterate_phdr(find_thread_locals, &found);
  static_ = found.begin;
  static_bytes_ = found.bytes;
}

void SharedMemory::poison() {
  fill_poison(memory_.data(), memory_.size());
  const ThreadState state = thread_state;
  fill_poison(static_, static_bytes_);
  thread_state = state;
}

bool SharedMemory::contains(const void* address, size_t bytes) const {
  const auto* begin = static_cast<const std::byte*>(address);
  const auto inside = [&](const std::byte* memory, size_t size) {
    return begin >= memory && begin + bytes <= memory + size;
  };
  return inside(dynamic_, dynamic_bytes_) || inside(static_, static_bytes_);
}

std::string SharedMemory::broken_guard() const {
  const std::byte* end = dynamic_ + dynamic_bytes_;
  for (const std::byte* p = end; p < end + kGuardBytes; ++p) {
    if (*p != poison_at(p)) {
      return "byte " + std::to_string(p - end) + " behind the " + std::to_string(dynamic_bytes_) +
             " bytes of dynamic shared memory was written";
    }
  }
  for (const std::byte* p = dynamic_ - 1; p >= dynamic_ - kGuardBytes; --p) {
    if (*p != poison_at(p)) {
      return "byte " + std::to_string(dynamic_ - p) + " before dynamic shared memory was written";
    }
  }
  return "";
}

}  // namespace fastmmoe::emulator
