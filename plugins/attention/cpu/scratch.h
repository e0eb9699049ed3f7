// SPDX-License-Identifier: Apache-2.0
// Memory that attention works in.
#pragma once

#include <cstdint>
#include <memory>

#include "attention/cpu/attend.h"

namespace fastmmoe {

/// Floats that live as long as their thread: memory that is new on each call would cost a page fault for each
/// 4 KiB.
class ThreadMemory {
 public:
  /// What it gave before holds nothing any more. Starts at 64 bytes.
  float* reserve(int64_t count);

 private:
  std::unique_ptr<float[]> floats_;
  int64_t count_ = 0;
};

/// This thread's own, for keys of width D and values of width W.
AttendScratch scratch_of_thread(int64_t D, int64_t W);

}  // namespace fastmmoe
