// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace fastmmoe {

/// Calls body(i) for every i in [0, count), in any order and on any threads, and returns when all calls are
/// done. If a body throws, one of the exceptions is thrown again by the caller. Kernels get it as an
/// argument, so that they know no framework; their results do not depend on how many threads it has.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

/// Items of which each needs all of the phase before.
struct Phase {
  int64_t items;
  std::function<void(int64_t)> body;
};

/// The phases one after the other, items in their order, each by the next thread that is free, with one call
/// of the threads: to wake those that sleep takes as long as some of the work, and whoever comes late goes on
/// with what is left. Between phases a thread waits for what others have begun, without sleep. No more
/// threads than the machine has cores take part.
inline void run_phases(const std::vector<Phase>& phases, const ParallelFor& parallel_for) {
  int64_t all = 0;
  for (const Phase& phase : phases) all += phase.items;
  std::atomic<int64_t> next{0}, finished{0};
  // Relaxed: a number orders nothing else, and ThreadSanitizer sees what items share.
  const auto take = [&next] { return next.fetch_add(1, std::memory_order_relaxed); };
  // Each call of run takes items until there are no more, so that more calls than threads would find none.
  static const int64_t most_calls = std::max(1U, std::thread::hardware_concurrency());
  const auto run = [&](int64_t) {
    struct Finish {
      std::atomic<int64_t>& finished;
      ~Finish() { finished.fetch_add(1, std::memory_order_release); }  // also where a body throws
    };
    size_t phase = 0;
    int64_t before = 0;  // items of earlier phases
    for (int64_t item = take(); item < all; item = take()) {
      while (item - before >= phases[phase].items) before += phases[phase++].items;
      constexpr int kLooks = 10000;
      for (int looks = 0; finished.load(std::memory_order_acquire) < before; ++looks) {
        if (looks > kLooks) std::this_thread::yield();
      }
      const Finish finish{finished};
      phases[phase].body(item - before);
    }
  };
  parallel_for(std::min(all, most_calls), run);
}

}  // namespace fastmmoe
