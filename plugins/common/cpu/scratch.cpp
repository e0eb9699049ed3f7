// SPDX-License-Identifier: Apache-2.0
#include "common/cpu/scratch.h"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <utility>

namespace fastmmoe {
namespace {

constexpr size_t kAlignment = 64;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kMostKept = 0;  // it looks at the ends of what is allocated
#else
constexpr size_t kMostKept = size_t{128} << 20;  // bytes of a block; a larger one is of a rare call
#endif
constexpr size_t kMostBlocks = 8;  // as many calls at once

struct Block {
  std::unique_ptr<std::byte[]> memory;
  size_t size;
};

// Of all operators and sessions: a call has one block, and few calls run at once.
struct Pool {
  std::mutex mutex;
  std::vector<Block> blocks;

  // The least that suffices; none: without memory.
  Block take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto found = blocks.end();
    for (auto block = blocks.begin(); block != blocks.end(); ++block) {
      if (block->size >= bytes && (found == blocks.end() || block->size < found->size)) found = block;
    }
    if (found == blocks.end()) {
      // What is too small makes room for what comes back.
      if (blocks.size() == kMostBlocks) blocks.erase(blocks.begin());
      return {nullptr, 0};
    }
    Block block = std::move(*found);
    blocks.erase(found);
    return block;
  }

  void give(Block block) {
    if (block.memory == nullptr || block.size > kMostKept) return;
    const std::lock_guard<std::mutex> lock(mutex);
    if (blocks.size() < kMostBlocks) blocks.push_back(std::move(block));
  }
};

// Never destroyed: threads may end after static objects.
Pool& pool() {
  static Pool* const pool = new Pool;
  return *pool;
}

}  // namespace

bool Scratch::take(size_t bytes) {
  const size_t needed = bytes + kAlignment;
  Block block = pool().take(needed);
  if (block.memory == nullptr) {
    block = {std::unique_ptr<std::byte[]>(new (std::nothrow) std::byte[needed]), needed};
    if (block.memory == nullptr) return false;
  }
  block_ = std::move(block.memory);
  size_ = block.size;
  const auto address = reinterpret_cast<uintptr_t>(block_.get());
  start_ = block_.get() + (kAlignment - address % kAlignment) % kAlignment;
  return true;
}

Scratch::~Scratch() { pool().give({std::move(block_), size_}); }

}  // namespace fastmmoe
