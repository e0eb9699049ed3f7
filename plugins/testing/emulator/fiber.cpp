// SPDX-License-Identifier: Apache-2.0
// The fortified longjmp takes every jump to another stack for an error and ends the process.
#undef _FORTIFY_SOURCE

#include "testing/emulator/fiber.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastmmoe::emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 * 1024;  // its frames are larger
void start_switch(const void* stack, size_t bytes) { __sanitizer_start_switch_fiber(nullptr, stack, bytes); }
void finish_switch(const void** stack, size_t* bytes) {
  __sanitizer_finish_switch_fiber(nullptr, stack, bytes);
}
void forget_poison(void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
constexpr size_t kStackBytes = 128 * 1024;
void start_switch(const void*, size_t) {}
void finish_switch(const void**, size_t*) {}
void forget_poison(void*, size_t) {}
#endif

constexpr uint64_t kCanary = 0x5afe57ac5afe57ac;

}  // namespace

Stacks::Stacks(size_t count) : bytes_(count * kStackBytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
}

Stacks::~Stacks() {
  forget_poison(memory_, bytes_);
  munmap(memory_, bytes_);
}

void* Stacks::operator[](size_t i) const { return static_cast<char*>(memory_) + i * kStackBytes; }

size_t Stacks::stack_bytes() { return kStackBytes; }

void Fiber::prepare(void* stack, Entry entry, void* argument) {
  stack_ = stack;
  entry_ = entry;
  argument_ = argument;
  started_ = false;
  *static_cast<uint64_t*>(stack) = kCanary;
}

// makecontext passes only ints.
void Fiber::run(unsigned high, unsigned low) {
  Fiber* fiber = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
  finish_switch(&fiber->resumer_stack_, &fiber->resumer_bytes_);
  for (;;) {
    fiber->entry_(fiber->argument_);
    fiber->suspend();
  }
}

// A context is used only once, to get onto the stack: each use costs a system call, a jump does not. This
// function never returns, so AddressSanitizer must not lay red zones around the context.
__attribute__((no_sanitize("address"))) void Fiber::start() {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack_;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  const uint64_t self = reinterpret_cast<uintptr_t>(this);
  makecontext(&context, reinterpret_cast<void (*)()>(&Fiber::run), 2, static_cast<unsigned>(self >> 32),
              static_cast<unsigned>(self));
  started_ = true;
  setcontext(&context);
}

void Fiber::resume() {
  start_switch(stack_, kStackBytes);
  if (_setjmp(resumer_) == 0) {
    if (started_) _longjmp(fiber_, 1);
    start();
  }
  finish_switch(nullptr, nullptr);
}

void Fiber::suspend() {
  start_switch(resumer_stack_, resumer_bytes_);
  if (_setjmp(fiber_) == 0) _longjmp(resumer_, 1);
  finish_switch(&resumer_stack_, &resumer_bytes_);
}

bool Fiber::stack_is_intact() const { return *static_cast<const uint64_t*>(stack_) == kCanary; }

}  // namespace fastmmoe::emulator
