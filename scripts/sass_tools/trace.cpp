// SPDX-License-Identifier: Apache-2.0
// Runs the kernels on the emulator and prints which bytes of shared memory each warp accesses at once. The
// kernels are compiled with -fsanitize=thread, so that gcc calls a function of this file for every access;
// the two PTX instructions that access shared memory are seen with the linker's --wrap.
//
// Two things are inferred. Neighbouring bytes that a lane accesses one after the other count as one access,
// as far as the widest instruction of nvcc's code for the kernel allows. Lanes run one after the other: what
// they do together is taken to be the n-th access of each lane at the same place of the code. Run with
// FASTMMOE_EMULATOR_THREADS=1.
#include <array>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "launches.h"
#include "testing/emulator/block.h"
#include "testing/emulator/matrix.h"
#include "testing/emulator/settings.h"

const bool kRunsKernels = true;

void* device_memory(size_t bytes) {
  constexpr size_t kAlignment = 256;
  static std::vector<std::unique_ptr<char[]>> memory;
  memory.push_back(std::make_unique<char[]>(bytes + kAlignment));
  const auto address = reinterpret_cast<uintptr_t>(memory.back().get());
  return memory.back().get() + (kAlignment - address % kAlignment);
}

namespace {

using namespace fastmmoe::emulator;

constexpr uintptr_t kBankBytes = 128;  // of all 32 banks
constexpr int64_t kAbsent = -1;

enum Operation { kLoad, kStore, kCopyAsync, kLoadMatrix, kAtomic };
constexpr const char* kNames[] = {"load", "store", "cp.async", "ldmatrix", "atomic"};

/// Byte addresses from a multiple of kBankBytes on; kAbsent for lanes that do not take part.
using Lanes = std::array<int64_t, kWarpLanes>;

class Trace {
 public:
  void add_widths(int load, int store) { widths_.push_back({load, store}); }

  void begin_launch() {
    if (widths_.empty()) return;
    limits_[kLoad] = widths_.front()[0];
    limits_[kStore] = widths_.front()[1];
    widths_.pop_front();
  }

  void note(Operation operation, const void* place, const void* address, int bytes) {
    const ThreadState& state = thread_state;
    if (state.running == nullptr || is_outside(address, static_cast<size_t>(bytes))) return;
    const uint64_t block = state.block.x + uint64_t{state.grid_dim.x} *
                                               (state.block.y + uint64_t{state.grid_dim.y} * state.block.z);
    if (block != block_) end_block();
    block_ = block;
    const auto begin = reinterpret_cast<uintptr_t>(address);
    Stretch& last = stretches_[state.thread.x];
    if (last.operation == operation && last.end == begin) {
      last.end += static_cast<unsigned>(bytes);
      return;
    }
    end_stretch(state.thread.x, last);
    last = {operation, place, begin, begin + static_cast<unsigned>(bytes)};
  }

  void end_launch(const char* kernel) {
    end_block();
    std::printf("launch %s\n", kernel);
    for (const auto& [pattern, count] : patterns_) {
      const auto& [operation, bytes, lanes] = pattern;
      std::printf("access %s %d %ld", kNames[operation], bytes, static_cast<long>(count));
      for (const int64_t offset : lanes) std::printf(" %ld", static_cast<long>(offset));
      std::printf("\n");
    }
    patterns_.clear();
  }

 private:
  /// Neighbouring bytes that a lane accesses one after the other.
  struct Stretch {
    Operation operation;
    const void* place;
    uintptr_t begin = 0, end = 0;
  };
  using Addresses = std::array<std::vector<uintptr_t>, kWarpLanes>;

  /// The emulator takes all thread-local variables for __shared__ ones; its own is none.
  static bool is_outside(const void* address, size_t bytes) {
    const auto* byte = static_cast<const char*>(address);
    const auto* own = reinterpret_cast<const char*>(&thread_state);
    return (own <= byte && byte < own + sizeof thread_state) ||
           !thread_state.running->shared().contains(address, bytes);
  }

  /// Cuts the stretch into aligned accesses.
  void end_stretch(unsigned thread, const Stretch& stretch) {
    int part = 0;
    for (uintptr_t at = stretch.begin; at < stretch.end; ++part) {
      int bytes = limits_[stretch.operation];
      while (at % bytes != 0 || at + bytes > stretch.end) bytes /= 2;
      auto& lanes = accesses_[{thread / kWarpLanes, stretch.operation, stretch.place, part, bytes}];
      lanes[thread % kWarpLanes].push_back(at);
      at += bytes;
    }
  }

  void end_block() {
    for (const auto& [thread, stretch] : stretches_) end_stretch(thread, stretch);
    stretches_.clear();
    for (const auto& [key, lanes] : accesses_) {
      size_t count = 0;
      for (const auto& addresses : lanes) count = addresses.size() > count ? addresses.size() : count;
      for (size_t i = 0; i < count; ++i) {
        ++patterns_[{std::get<Operation>(key), std::get<4>(key), relative(lanes, i)}];
      }
    }
    accesses_.clear();
  }

  static Lanes relative(const Addresses& lanes, size_t i) {
    uintptr_t least = UINTPTR_MAX;
    for (const auto& addresses : lanes) {
      if (i < addresses.size() && addresses[i] < least) least = addresses[i];
    }
    least -= least % kBankBytes;
    Lanes offsets;
    for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
      const auto& addresses = lanes[lane];
      offsets[lane] = i < addresses.size() ? static_cast<int64_t>(addresses[i] - least) : kAbsent;
    }
    return offsets;
  }

  std::deque<std::array<int, 2>> widths_;       // of the launches to come
  std::array<int, 5> limits_{4, 4, 16, 16, 4};  // bytes of an access, by operation
  uint64_t block_ = 0;
  std::map<unsigned, Stretch> stretches_;  // by thread
  // By warp, operation, place in the code, part of the stretch, and bytes; of one block.
  std::map<std::tuple<unsigned, Operation, const void*, int, int>, Addresses> accesses_;
  std::map<std::tuple<Operation, int, Lanes>, uint64_t> patterns_;  // of one launch
};

// Not thread-local, which would make it a __shared__ variable.
Trace trace;

}  // namespace

void set_architecture(int architecture) { fastmmoe_emulator_set_architecture(architecture); }

void read_widths(std::istream& widths) {
  widths.exceptions(std::ios::goodbit);
  for (int load, store; widths >> load >> store;) trace.add_widths(load, store);
}

#define LAUNCH _ZN8fastmmoe8emulator6launchEPKc4dim3S3_mRKSt8functionIFvvEE
#define COPY_ASYNC _ZN8fastmmoe8emulator10copy_asyncEPvPKvbNS0_4SiteE
#define LOAD_MATRIX _ZN8fastmmoe8emulator11load_matrixEPjjbPKvNS0_4SiteE
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define REAL(name) JOIN(__real_, name)
#define WRAP(name) JOIN(__wrap_, name)

#define NOTE_ACCESSES(bytes)                                                                                 \
  void __tsan_read##bytes(void* address) { trace.note(kLoad, __builtin_return_address(0), address, bytes); } \
  void __tsan_write##bytes(void* address) {                                                                  \
    trace.note(kStore, __builtin_return_address(0), address, bytes);                                         \
  }                                                                                                          \
  void __tsan_unaligned_read##bytes(void* address) {                                                         \
    trace.note(kLoad, __builtin_return_address(0), address, bytes);                                          \
  }                                                                                                          \
  void __tsan_unaligned_write##bytes(void* address) {                                                        \
    trace.note(kStore, __builtin_return_address(0), address, bytes);                                         \
  }

extern "C" {

NOTE_ACCESSES(1)
NOTE_ACCESSES(2)
NOTE_ACCESSES(4)
NOTE_ACCESSES(8)
NOTE_ACCESSES(16)

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void*, size_t) {}
void __tsan_write_range(void*, size_t) {}

// The emulator's atomic operation is a load and a compare-and-exchange; it counts as the latter alone.
uint32_t __tsan_atomic32_load(const volatile uint32_t* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_compare_exchange_strong(volatile uint32_t* address, uint32_t* expected, uint32_t desired,
                                            int, int) {
  trace.note(kAtomic, __builtin_return_address(0), const_cast<uint32_t*>(address), 4);
  return __atomic_compare_exchange_n(address, expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

void REAL(LAUNCH)(const char*, dim3, dim3, size_t, const std::function<void()>&);
void WRAP(LAUNCH)(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                  const std::function<void()>& body) {
  trace.begin_launch();
  REAL(LAUNCH)(kernel, grid, block, shared_bytes, body);
  trace.end_launch(kernel);
}

void REAL(COPY_ASYNC)(void*, const void*, bool, Site);
void WRAP(COPY_ASYNC)(void* shared, const void* global, bool valid, Site site) {
  trace.note(kCopyAsync, __builtin_return_address(0), shared, 16);
  REAL(COPY_ASYNC)(shared, global, valid, site);
}

void REAL(LOAD_MATRIX)(uint32_t*, unsigned, bool, const void*, Site);
void WRAP(LOAD_MATRIX)(uint32_t* fragment, unsigned count, bool transpose, const void* row, Site site) {
  // Only the first 8 lanes of each matrix pass an address that counts.
  if (thread_state.thread.x % kWarpLanes < 8 * count)
    trace.note(kLoadMatrix, __builtin_return_address(0), row, 16);
  REAL(LOAD_MATRIX)(fragment, count, transpose, row, site);
}
}
