// SPDX-License-Identifier: Apache-2.0
// Working memory of calls, kept for the next ones: fresh pages cost more than what is done in them.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastmmoe {

/// Memory of one call, which its owner gives back by ending. Starts at 64 bytes; values are what was there.
class Scratch {
 public:
  /// Throws std::runtime_error where memory does not suffice. what() says what needed it: most calls have no
  /// use for the words.
  template <typename What>
  Scratch(size_t bytes, const What& what) {
    if (!take(bytes)) throw std::runtime_error(what() + ": no " + std::to_string(bytes) + " bytes of memory");
  }
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::byte* data() const { return start_; }

 private:
  bool take(size_t bytes);

  std::unique_ptr<std::byte[]> block_;
  size_t size_;
  std::byte* start_;
};

/// Places in a block one after the other, each starting at 64 bytes.
class Carving {
 public:
  /// Offset of the next array.
  size_t add(size_t bytes) {
    const size_t offset = size_;
    size_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  size_t size() const { return size_; }

 private:
  static constexpr size_t kAlignment = 64;
  size_t size_ = 0;
};

}  // namespace fastmmoe
