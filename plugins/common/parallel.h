// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace fastmmoe {

/// Calls body(i) for every i in [0, count), in any order and on any threads, and returns when all calls are
/// done. If a body throws, one of the exceptions is thrown again by the caller. Kernels get it as an
/// argument, so that they know no framework; their results do not depend on how many threads it has.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

/// Items in their order, each by the next thread that is free, whatever share of them the threads were to
/// get.
inline void run_in_order(int64_t items, const ParallelFor& parallel_for,
                         const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> next{0};
  // Relaxed: a number orders nothing else, and ThreadSanitizer sees what items share.
  const auto take = [&next] { return next.fetch_add(1, std::memory_order_relaxed); };
  parallel_for(items, [&](int64_t) {
    for (int64_t item = take(); item < items; item = take()) body(item);
  });
}

}  // namespace fastmmoe
