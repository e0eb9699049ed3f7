// SPDX-License-Identifier: Apache-2.0
// Where threads of a block meet: the block barrier and the collectives of a warp.
#include <cstdio>
#include <map>
#include <string_view>
#include <tuple>
#include <utility>

#include "testing/emulator/block.h"

namespace fastmmoe::emulator {
namespace {

constexpr uint32_t bit(unsigned lane) { return uint32_t{1} << lane; }

std::string hex(uint32_t mask) {
  char text[11];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

std::string triple(const uint3& v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

}  // namespace

std::string to_string(const Site& site) {
  const std::string_view path(site.file);
  return std::string(path.substr(path.rfind('/') + 1)) + ":" + std::to_string(site.line);
}

void WarpCall::fail(unsigned lane, const std::string& message) const {
  block.fail_as(first_thread + lane, message);
}

std::string Block::describe(const Wait& wait) {
  const std::string with_mask = wait.mask == 0 ? "" : " with mask " + hex(wait.mask);
  return wait.operation + with_mask + " at " + to_string(wait.site);
}

std::string Block::place(const Thread* thread) const {
  std::string text = "kernel '" + launch_.kernel + "', block " + triple(thread_state.block);
  if (thread != nullptr) text += ", thread " + triple(thread->index);
  return text + ": ";
}

std::string Block::deadlock() const {
  using Key = std::tuple<std::string, unsigned>;  // what is waited for, in which warp
  std::map<Key, std::pair<unsigned, const Thread*>> waiting;
  for (unsigned i = 0; i < thread_count_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.wait.operation == nullptr) continue;
    const Wait& wait = thread.wait;
    const unsigned warp = wait.mask == 0 ? 0 : thread.linear / kWarpLanes;
    auto& entry = waiting[{describe(wait), warp}];
    if (entry.first++ == 0) entry.second = &thread;
  }
  std::string text = "deadlock";
  for (const auto& [key, entry] : waiting) {
    text += (text == "deadlock" ? ": " : "; ") + std::to_string(entry.first) + " threads from " +
            triple(entry.second->index) + " on wait in " + std::get<0>(key);
  }
  return text + "; " + std::to_string(thread_count_ - live_) + " of " + std::to_string(thread_count_) +
         " threads have exited";
}

BarrierResult Block::barrier(const char* name, int predicate, Site site) {
  Thread& thread = *running_;
  const Wait wait{name, 0, site};
  if (barrier_arrived_.threads == 0) barrier_wait_ = wait;
  if (barrier_wait_.site != site || std::string_view(barrier_wait_.operation) != name) {
    fail("divergent barrier: reached " + describe(wait) + " while " +
         std::to_string(barrier_arrived_.threads) + " threads wait in " + describe(barrier_wait_));
  }
  ++barrier_arrived_.threads;
  barrier_arrived_.count += predicate != 0;
  thread.wait = wait;
  thread.warp->ready &= ~bit(thread.lane);
  open_barrier();
  if (thread.wait.operation != nullptr) thread.fiber.suspend();
  return barrier_result_;
}

// Exited threads do not count, as on compute capability 7.0 and later.
void Block::open_barrier() {
  if (barrier_arrived_.threads == 0 || barrier_arrived_.threads != static_cast<int>(live_)) return;
  barrier_result_ = barrier_arrived_;
  barrier_arrived_ = {};
  for (unsigned i = 0; i < thread_count_; ++i) {
    Thread& thread = threads_[i];
    if ((thread.warp->gone & bit(thread.lane)) != 0) continue;
    thread.wait = {};
    thread.warp->ready |= bit(thread.lane);
  }
}

void Block::check_mask(const Collective& operation, const Wait& wait) const {
  if ((wait.mask & bit(running_->lane)) == 0) {
    fail(describe(wait) + " does not name the calling lane " + std::to_string(running_->lane));
  }
  const uint32_t missing = wait.mask & running_->warp->gone;
  if (operation.whole_warp && missing != 0) {
    fail(describe(wait) + " needs all 32 lanes, lanes " + hex(missing) + " have exited or do not exist");
  }
}

// The group that waits for the running lane in the same operation and mask, or a new one. Another group may
// need some of the lanes first; where it also needs the running lane, neither can complete.
Block::Group& Block::join_group(const Collective& operation, const Wait& wait) {
  Warp& warp = *running_->warp;
  for (uint32_t left = warp.in_collective & wait.mask; left != 0; left &= left - 1) {
    const unsigned other = static_cast<unsigned>(__builtin_ctz(left));
    Group& group = warp.groups[warp.group_of[other]];
    if (group.mask == wait.mask && group.operation == &operation &&
        (!operation.whole_warp || group.site == wait.site)) {
      return group;
    }
    if ((group.mask & bit(running_->lane)) != 0) {
      fail("divergent collective: lane " + std::to_string(running_->lane) + " reached " + describe(wait) +
           " while lane " + std::to_string(other) + " waits in " +
           describe(threads_[warp.first_thread + other].wait));
    }
  }
  // A lane that runs waits in no group, so the group it opened last is complete.
  Group& group = warp.groups[running_->lane];
  group = {&operation, wait.mask, 0, wait.site};
  return group;
}

void Block::collective(const Collective& operation, uint32_t mask, const void* in, void* out, Site site) {
  Thread& thread = *running_;
  Warp& warp = *thread.warp;
  const Wait wait{operation.name, mask, site};
  check_mask(operation, wait);
  Group& group = join_group(operation, wait);
  group.arrived |= bit(thread.lane);
  warp.in_collective |= bit(thread.lane);
  warp.group_of[thread.lane] = static_cast<uint8_t>(&group - warp.groups);
  warp.in[thread.lane] = in;
  warp.out[thread.lane] = out;
  if ((mask & ~(group.arrived | warp.gone)) == 0) {
    complete(warp, group);
    return;
  }
  thread.wait = wait;
  warp.ready &= ~bit(thread.lane);
  thread.fiber.suspend();
}

void Block::complete(Warp& warp, Group& group) {
  group.operation->combine({*this, warp.first_thread, group.arrived, warp.in, warp.out});
  for (uint32_t left = group.arrived; left != 0; left &= left - 1) {
    threads_[warp.first_thread + static_cast<unsigned>(__builtin_ctz(left))].wait = {};
  }
  warp.ready |= group.arrived;
  warp.in_collective &= ~group.arrived;
  group.arrived = 0;
}

}  // namespace fastmmoe::emulator
