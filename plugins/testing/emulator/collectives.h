// SPDX-License-Identifier: Apache-2.0
// The barrier of a block and the warp functions of CUDA, under CUDA's names. The last argument is the place
// of the call and is never written.
#pragma once

#include <cstdint>
#include <type_traits>

#include "testing/emulator/block.h"

namespace fastmmoe::emulator {

inline constexpr Collective kSyncWarp{"__syncwarp", false, [](const WarpCall&) {}};

// The lane that `lane` of a segment of `width` lanes reads.
struct ReadIndexed {
  static constexpr const char* kName = "__shfl_sync";
  static unsigned source(unsigned lane, unsigned width, unsigned n) {
    return (lane & ~(width - 1)) + (n & (width - 1));
  }
};
struct ReadUp {
  static constexpr const char* kName = "__shfl_up_sync";
  static unsigned source(unsigned lane, unsigned width, unsigned n) {
    return n > (lane & (width - 1)) ? lane : lane - n;
  }
};
struct ReadDown {
  static constexpr const char* kName = "__shfl_down_sync";
  static unsigned source(unsigned lane, unsigned width, unsigned n) {
    return (lane & (width - 1)) + uint64_t{n} >= width ? lane : lane + n;
  }
};
struct ReadXor {
  static constexpr const char* kName = "__shfl_xor_sync";
  static unsigned source(unsigned lane, unsigned width, unsigned n) {
    // An earlier segment may be read, a later one not.
    return (lane ^ n) >= (lane & ~(width - 1)) + width ? lane : lane ^ n;
  }
};

template <typename T>
struct ShuffleInput {
  T value;
  unsigned n;
  unsigned width;
};

template <typename T, typename Read>
void combine_shuffle(const WarpCall& call) {
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    if (!call.takes_part(lane)) continue;
    const auto& input = call.input<ShuffleInput<T>>(lane);
    const unsigned source = Read::source(lane, input.width, input.n);
    if (!call.takes_part(source)) {
      call.fail(lane, std::string(Read::kName) + " reads lane " + std::to_string(source) +
                          ", which is out of range, has exited or is not in the mask");
    }
    call.output<T>(lane) = call.input<ShuffleInput<T>>(source).value;
  }
}

template <typename T, typename Read>
inline constexpr Collective kShuffle{Read::kName, false, combine_shuffle<T, Read>};

template <typename Read, typename T>
T shuffle(uint32_t mask, T value, unsigned n, int width, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2));
  Block& block = Block::current();
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    block.fail(std::string(Read::kName) + " has width " + std::to_string(width) +
               ", expected 1, 2, 4, 8, 16 or 32");
  }
  const ShuffleInput<T> input{value, n, static_cast<unsigned>(width)};
  T result;
  block.collective(kShuffle<T, Read>, mask, &input, &result, site);
  return result;
}

template <typename T, typename Result, typename Reduce>
void combine_all(const WarpCall& call, Reduce reduce) {
  Result result{};
  bool first = true;
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    if (call.takes_part(lane)) result = reduce(result, call.input<T>(lane), lane, first);
    if (call.takes_part(lane)) first = false;
  }
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    if (call.takes_part(lane)) call.output<Result>(lane) = result;
  }
}

inline void combine_ballot(const WarpCall& call) {
  combine_all<int, uint32_t>(call, [](uint32_t votes, int predicate, unsigned lane, bool) {
    return votes | uint32_t{predicate != 0} << lane;
  });
}
inline void combine_any(const WarpCall& call) {
  combine_all<int, int>(call, [](int any, int predicate, unsigned, bool) { return any | (predicate != 0); });
}
inline void combine_every(const WarpCall& call) {
  combine_all<int, int>(call, [](int every, int predicate, unsigned, bool first) {
    return (first ? 1 : every) & (predicate != 0);
  });
}
inline constexpr Collective kBallot{"__ballot_sync", false, combine_ballot};
inline constexpr Collective kAny{"__any_sync", false, combine_any};
inline constexpr Collective kAll{"__all_sync", false, combine_every};

template <typename T>
void combine_match(const WarpCall& call) {
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    if (!call.takes_part(lane)) continue;
    uint32_t equal = 0;
    for (unsigned other = 0; other < kWarpLanes; ++other) {
      if (call.takes_part(other) && call.input<T>(other) == call.input<T>(lane))
        equal |= uint32_t{1} << other;
    }
    call.output<uint32_t>(lane) = equal;
  }
}
template <typename T>
inline constexpr Collective kMatchAny{"__match_any_sync", false, combine_match<T>};

struct Add {
  static constexpr const char* kName = "__reduce_add_sync";
  template <typename T>
  static T apply(T a, T b) {
    return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  }
};
struct Min {
  static constexpr const char* kName = "__reduce_min_sync";
  template <typename T>
  static T apply(T a, T b) {
    return b < a ? b : a;
  }
};
struct Max {
  static constexpr const char* kName = "__reduce_max_sync";
  template <typename T>
  static T apply(T a, T b) {
    return a < b ? b : a;
  }
};
struct And {
  static constexpr const char* kName = "__reduce_and_sync";
  template <typename T>
  static T apply(T a, T b) {
    return a & b;
  }
};
struct Or {
  static constexpr const char* kName = "__reduce_or_sync";
  template <typename T>
  static T apply(T a, T b) {
    return a | b;
  }
};

template <typename T, typename Op>
void combine_reduce(const WarpCall& call) {
  combine_all<T, T>(
      call, [](T sum, T value, unsigned, bool first) { return first ? value : Op::apply(sum, value); });
}
template <typename T, typename Op>
inline constexpr Collective kReduce{Op::kName, false, combine_reduce<T, Op>};

template <typename Result, typename T>
Result meet(const Collective& operation, uint32_t mask, T value, Site site) {
  Result result;
  Block::current().collective(operation, mask, &value, &result, site);
  return result;
}

}  // namespace fastmmoe::emulator

inline void __syncthreads(fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  fastmmoe::emulator::Block::current().barrier("__syncthreads", 0, site);
}
inline int __syncthreads_count(int predicate,
                               fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  return fastmmoe::emulator::Block::current().barrier("__syncthreads_count", predicate, site).count;
}
inline int __syncthreads_or(int predicate, fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  return fastmmoe::emulator::Block::current().barrier("__syncthreads_or", predicate, site).count > 0;
}
inline int __syncthreads_and(int predicate,
                             fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  const auto result = fastmmoe::emulator::Block::current().barrier("__syncthreads_and", predicate, site);
  return result.count == result.threads;
}
inline void __syncwarp(unsigned mask = 0xffffffff,
                       fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  fastmmoe::emulator::Block::current().collective(fastmmoe::emulator::kSyncWarp, mask, nullptr, nullptr,
                                                  site);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  return fastmmoe::emulator::shuffle<fastmmoe::emulator::ReadIndexed>(
      mask, value, static_cast<unsigned>(lane), width, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  return fastmmoe::emulator::shuffle<fastmmoe::emulator::ReadUp>(mask, value, delta, width, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  return fastmmoe::emulator::shuffle<fastmmoe::emulator::ReadDown>(mask, value, delta, width, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  return fastmmoe::emulator::shuffle<fastmmoe::emulator::ReadXor>(mask, value, static_cast<unsigned>(lanes),
                                                                  width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  return fastmmoe::emulator::meet<uint32_t>(fastmmoe::emulator::kBallot, mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate,
                      fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  return fastmmoe::emulator::meet<int>(fastmmoe::emulator::kAny, mask, predicate, site);
}
inline int __all_sync(unsigned mask, int predicate,
                      fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  return fastmmoe::emulator::meet<int>(fastmmoe::emulator::kAll, mask, predicate, site);
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value,
                          fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  return fastmmoe::emulator::meet<uint32_t>(fastmmoe::emulator::kMatchAny<T>, mask, value, site);
}

// One __reduce_*_sync for int and unsigned; CUDA has and, or only for unsigned.
#define FASTMMOE_EMULATOR_REDUCE(name, Op, T)                                                               \
  inline T name(unsigned mask, T value, fastmmoe::emulator::Site site = fastmmoe::emulator::Site::here()) { \
    return fastmmoe::emulator::meet<T>(fastmmoe::emulator::kReduce<T, fastmmoe::emulator::Op>, mask, value, \
                                       site);                                                               \
  }
FASTMMOE_EMULATOR_REDUCE(__reduce_add_sync, Add, int)
FASTMMOE_EMULATOR_REDUCE(__reduce_add_sync, Add, unsigned)
FASTMMOE_EMULATOR_REDUCE(__reduce_min_sync, Min, int)
FASTMMOE_EMULATOR_REDUCE(__reduce_min_sync, Min, unsigned)
FASTMMOE_EMULATOR_REDUCE(__reduce_max_sync, Max, int)
FASTMMOE_EMULATOR_REDUCE(__reduce_max_sync, Max, unsigned)
FASTMMOE_EMULATOR_REDUCE(__reduce_and_sync, And, unsigned)
FASTMMOE_EMULATOR_REDUCE(__reduce_or_sync, Or, unsigned)
#undef FASTMMOE_EMULATOR_REDUCE
