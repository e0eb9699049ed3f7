// SPDX-License-Identifier: Apache-2.0
// One block of CUDA threads: fibers that run in turn on one OS thread and wait for each other.
#pragma once

#include <vector_types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "testing/emulator/async_copy.h"
#include "testing/emulator/error.h"
#include "testing/emulator/fiber.h"
#include "testing/emulator/shared_memory.h"

namespace fastmmoe::emulator {

constexpr unsigned kWarpLanes = 32;

class Block;

/// What the CUDA built-in variables read, and the block that this OS thread runs.
struct ThreadState {
  uint3 thread;
  uint3 block;
  dim3 block_dim;
  dim3 grid_dim;
  Block* running;
};
// __thread, not thread_local: each use would call a function that looks for a dynamic initialisation.
extern __thread ThreadState thread_state;

/// The lanes of a warp that met in a collective. Pointers are to what each lane passed; they are valid for
/// the lanes that take part.
struct WarpCall {
  Block& block;
  unsigned first_thread;
  uint32_t lanes;
  const void* const* in;
  void* const* out;

  bool takes_part(unsigned lane) const { return lane < kWarpLanes && (lanes >> lane & 1) != 0; }
  template <typename T>
  const T& input(unsigned lane) const {
    return *static_cast<const T*>(in[lane]);
  }
  template <typename T>
  T& output(unsigned lane) const {
    return *static_cast<T*>(out[lane]);
  }
  [[noreturn]] void fail(unsigned lane, const std::string& message) const;
};

/// A warp operation. Lanes meet only in the same object.
struct Collective {
  const char* name;
  /// Whether all 32 lanes must meet at one place of the source, as the .aligned instructions need.
  bool whole_warp;
  void (*combine)(const WarpCall& call);
};

/// Predicates of the threads that met at a barrier.
struct BarrierResult {
  int threads;
  int count;  // of predicates that are not 0
};

struct Launch {
  std::string kernel;
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  uint64_t seed;
  const std::function<void()>& body;
};

class Block {
 public:
  explicit Block(const Launch& launch);
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  /// Runs the block with this linear index to its end. Throws EmulatorError at the first fault; the block
  /// object can then only be destroyed.
  void run(uint64_t index);

  // The rest is called on the fibers of this block.
  static Block& current() { return *thread_state.running; }
  BarrierResult barrier(const char* name, int predicate, Site site);
  /// Waits until all lanes of the mask that have not exited called this. in and out are for combine.
  void collective(const Collective& operation, uint32_t mask, const void* in, void* out, Site site);
  SharedMemory& shared() { return shared_; }
  AsyncCopies& async_copies() { return running_->copies; }
  unsigned lane() const { return running_->lane; }
  /// Ends the launch with this error, reported for the running or another thread.
  [[noreturn]] void fail(const std::string& message) const;
  [[noreturn]] void fail_as(unsigned thread, const std::string& message) const;

 private:
  struct Wait {
    const char* operation = nullptr;  // null while the thread can run
    uint32_t mask = 0;                // 0 for a barrier
    Site site{};
  };
  struct Warp;
  struct Thread {
    Fiber fiber;
    Block* block = nullptr;
    Warp* warp = nullptr;
    uint3 index{};
    unsigned linear = 0;
    unsigned lane = 0;
    Wait wait;
    AsyncCopies copies;
  };
  // Lanes that meet in one collective.
  struct Group {
    const Collective* operation = nullptr;
    uint32_t mask = 0;
    uint32_t arrived = 0;
    Site site{};
  };
  struct Warp {
    unsigned first_thread = 0;
    uint32_t ready = 0;
    uint32_t gone = 0;  // exited, or beyond the end of the block
    uint32_t in_collective = 0;
    Group groups[kWarpLanes];  // each at the lane that opened it
    uint8_t group_of[kWarpLanes];
    const void* in[kWarpLanes];
    void* out[kWarpLanes];
  };

  static void run_thread(void* thread);
  void start(uint64_t index);
  void schedule();
  Warp* next_warp();
  void run_warp(Warp& warp);
  void resume(Thread& thread);
  uint64_t random();

  void exit_thread(Thread& thread);
  void open_barrier();
  void check_mask(const Collective& operation, const Wait& wait) const;
  Group& join_group(const Collective& operation, const Wait& wait);
  void complete(Warp& warp, Group& group);

  static std::string describe(const Wait& wait);
  std::string place(const Thread* thread) const;
  std::string deadlock() const;

  const Launch& launch_;
  std::vector<Warp> warps_;
  std::unique_ptr<Thread[]> threads_;
  unsigned thread_count_;
  Stacks stacks_;
  SharedMemory shared_;
  Thread* running_ = nullptr;
  unsigned live_ = 0;
  uint64_t random_ = 0;  // 0 runs in order
  std::string fault_;

  Wait barrier_wait_;
  BarrierResult barrier_arrived_{};
  BarrierResult barrier_result_{};
};

}  // namespace fastmmoe::emulator
