// SPDX-License-Identifier: Apache-2.0
// Scheduling: which thread of a block runs next, and its start and end.
#include "testing/emulator/block.h"

#include <exception>
#include <limits>
#include <utility>

namespace fastmmoe::emulator {

__thread ThreadState thread_state{};

namespace {

constexpr uint32_t bit(unsigned lane) { return uint32_t{1} << lane; }

uint32_t lanes_below(unsigned count) { return count >= kWarpLanes ? ~uint32_t{0} : bit(count) - 1; }

// Splitmix64: neighbouring seeds give unrelated numbers.
uint64_t scramble(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

Block::Block(const Launch& launch)
    : launch_(launch),
      thread_count_(launch.block.x * launch.block.y * launch.block.z),
      stacks_(thread_count_),
      shared_(launch.shared_bytes) {
  warps_.resize((thread_count_ + kWarpLanes - 1) / kWarpLanes);
  threads_ = std::make_unique<Thread[]>(thread_count_);
  for (unsigned i = 0; i < thread_count_; ++i) {
    Thread& thread = threads_[i];
    thread.block = this;
    thread.warp = &warps_[i / kWarpLanes];
    thread.linear = i;
    thread.lane = i % kWarpLanes;
    const dim3& size = launch.block;
    thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    thread.fiber.prepare(stacks_[i], &Block::run_thread, &thread);
  }
}

void Block::start(uint64_t index) {
  const dim3& grid = launch_.grid;
  thread_state.block = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                        static_cast<unsigned>(index / grid.x / grid.y)};
  thread_state.block_dim = launch_.block;
  thread_state.grid_dim = grid;
  thread_state.running = this;
  random_ = launch_.seed == 0 ? 0 : scramble(launch_.seed ^ scramble(index)) | 1;
  live_ = thread_count_;
  for (unsigned w = 0; w < warps_.size(); ++w) {
    const unsigned first = w * kWarpLanes;
    const uint32_t lanes = lanes_below(thread_count_ - first);
    warps_[w] = Warp{};
    warps_[w].first_thread = first;
    warps_[w].ready = lanes;
    warps_[w].gone = ~lanes;
  }
  shared_.poison();
}

void Block::run(uint64_t index) {
  start(index);
  schedule();
  const std::string broken = shared_.broken_guard();
  if (!broken.empty()) throw EmulatorError(place(nullptr) + broken);
}

uint64_t Block::random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  return random_;
}

Block::Warp* Block::next_warp() {
  const size_t first = random_ == 0 ? 0 : random() % warps_.size();
  for (size_t i = 0; i < warps_.size(); ++i) {
    Warp& warp = warps_[(first + i) % warps_.size()];
    if (warp.ready != 0) return &warp;
  }
  return nullptr;
}

void Block::schedule() {
  while (live_ > 0) {
    Warp* warp = next_warp();
    if (warp == nullptr) throw EmulatorError(place(nullptr) + deadlock());
    run_warp(*warp);
  }
}

// In order, a warp runs until all its lanes wait. With a seed, lanes run in another order each time and the
// warp sometimes stops early, so that warps run ahead of each other by very different amounts.
void Block::run_warp(Warp& warp) {
  constexpr unsigned kRounds[] = {1, 2, 8, std::numeric_limits<unsigned>::max()};
  const unsigned rounds = kRounds[random_ == 0 ? 3 : random() % 4];
  for (unsigned round = 0; round < rounds && warp.ready != 0; ++round) {
    const uint64_t order = random_ == 0 ? 0 : random() >> 32;
    const unsigned step = static_cast<unsigned>(order % kWarpLanes) | 1;  // odd: reaches every lane
    const unsigned offset = static_cast<unsigned>(order / kWarpLanes % kWarpLanes);
    for (unsigned i = 0; i < kWarpLanes; ++i) {
      const unsigned lane = (i * step + offset) % kWarpLanes;
      if ((warp.ready & bit(lane)) != 0) resume(threads_[warp.first_thread + lane]);
    }
  }
}

void Block::resume(Thread& thread) {
  running_ = &thread;
  thread_state.thread = thread.index;
  thread.fiber.resume();
  if (!fault_.empty()) throw EmulatorError(fault_);
}

// An exception must not cross from one stack to another: it ends here and resume() throws it anew.
void Block::run_thread(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  Block& block = *thread.block;
  std::string fault;
  try {
    block.launch_.body();
    block.exit_thread(thread);
  } catch (const EmulatorError& error) {
    fault = error.what();
  } catch (const std::exception& error) {
    fault = block.place(&thread) + "threw " + error.what();
  }
  block.fault_ = std::move(fault);
}

void Block::exit_thread(Thread& thread) {
  if (!thread.fiber.stack_is_intact()) {
    fail("local variables take more than the " + std::to_string(Stacks::stack_bytes()) + " bytes of a stack");
  }
  if (thread.copies.unfinished() != 0) {
    fail("exits while " + std::to_string(thread.copies.unfinished()) +
         " cp.async copies are not waited for; wait for them before the end of the kernel");
  }
  Warp& warp = *thread.warp;
  warp.ready &= ~bit(thread.lane);
  warp.gone |= bit(thread.lane);
  --live_;
  for (Group& group : warp.groups) {
    if (group.arrived == 0 || (group.mask & bit(thread.lane)) == 0) continue;
    if (group.operation->whole_warp) {
      fail("exits while lanes of its warp wait in " + std::string(group.operation->name) + " at " +
           to_string(group.site) + ", which needs all 32 lanes");
    }
    if ((group.mask & ~(group.arrived | warp.gone)) == 0) complete(warp, group);
  }
  open_barrier();
}

void Block::fail(const std::string& message) const { fail_as(running_->linear, message); }

void Block::fail_as(unsigned thread, const std::string& message) const {
  throw EmulatorError(place(&threads_[thread]) + message);
}

}  // namespace fastmmoe::emulator
