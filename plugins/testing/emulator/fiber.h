// SPDX-License-Identifier: Apache-2.0
// A fiber: a stack of its own that runs until it suspends itself. One fiber is one CUDA thread.
#pragma once

#include <csetjmp>
#include <cstddef>

namespace fastmmoe::emulator {

/// Stacks of many fibers in one piece of memory; pages that are never touched take no memory.
class Stacks {
 public:
  /// Throws std::bad_alloc where the address space has no room.
  explicit Stacks(size_t count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  void* operator[](size_t i) const;
  static size_t stack_bytes();

 private:
  void* memory_;
  size_t bytes_;
};

/// Runs entry(argument) again and again, suspended after each run. It must be resumed and suspended by one
/// OS thread. A suspended fiber may be destroyed; objects on its stack are then not destructed.
class Fiber {
 public:
  using Entry = void (*)(void* argument);
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void prepare(void* stack, Entry entry, void* argument);
  /// Goes on where the fiber suspended itself, or starts entry; returns when it suspends itself again.
  void resume();
  /// Called on the fiber: goes back to resume().
  void suspend();
  /// False where the stack was used to its end, so that memory beside it may be overwritten.
  bool stack_is_intact() const;

 private:
  static void run(unsigned high, unsigned low);
  void start();

  void* stack_ = nullptr;
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
  bool started_ = false;
  std::jmp_buf fiber_;
  std::jmp_buf resumer_;
  // Bounds of the resumer's stack, which AddressSanitizer must be told at each switch.
  const void* resumer_stack_ = nullptr;
  size_t resumer_bytes_ = 0;
};

}  // namespace fastmmoe::emulator
