// SPDX-License-Identifier: Apache-2.0
#include "attention/cpu/scratch.h"

#include <algorithm>
#include <utility>

namespace fastmmoe {

float* ThreadMemory::reserve(int64_t count) {
  constexpr uintptr_t kAlignment = kMostLanes * sizeof(float);
  if (count > count_) {
    count_ = 0;
    floats_.reset(new float[static_cast<size_t>(count + kMostLanes)]);
    count_ = count;
  }
  const uintptr_t past = reinterpret_cast<uintptr_t>(floats_.get()) % kAlignment;
  return floats_.get() + (kAlignment - past) % kAlignment / sizeof(float);
}

AttendScratch scratch_of_thread(int64_t D, int64_t W) {
  thread_local ThreadMemory memory;
  constexpr int64_t kScores = std::max(kKeysPerTile * kRowsPerTile, kFewRows * kKeysPerPart);
  const int64_t keys = padded(D), values = padded(W);
  float* next = memory.reserve((kRowsPerTile + kKeysPerTile) * (keys + values) + kScores + 2 * kRowsPerTile);
  const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
  AttendScratch scratch{};
  scratch.query = take(kRowsPerTile * keys);
  scratch.keys = take(kKeysPerTile * keys);
  scratch.values = take(kKeysPerTile * values);
  scratch.scores = take(kScores);
  scratch.greatest = take(kRowsPerTile);
  scratch.total = take(kRowsPerTile);
  scratch.output = take(kRowsPerTile * values);
  return scratch;
}

}  // namespace fastmmoe
