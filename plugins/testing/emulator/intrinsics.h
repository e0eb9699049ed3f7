// SPDX-License-Identifier: Apache-2.0
// Device functions of CUDA that need no other thread, and the atomic ones, under CUDA's names. Results that
// the CUDA Math API rounds to nearest even are exact here; approximate ones (__expf, ...) are the correct
// function.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastmmoe::emulator {

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Stops the deduction of T, so that atomicAdd(&unsigned_value, 1) compiles as it does in CUDA.
template <typename T>
struct Same {
  using Type = T;
};

template <typename T, typename Update>
T atomic_update(T* address, Update update) {
  T old;
  __atomic_load(address, &old, __ATOMIC_SEQ_CST);
  T desired = update(old);
  while (!__atomic_compare_exchange(address, &old, &desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    desired = update(old);
  }
  return old;
}

}  // namespace fastmmoe::emulator

using std::max;
using std::min;

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline int __float_as_int(float x) { return fastmmoe::emulator::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return fastmmoe::emulator::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return fastmmoe::emulator::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return fastmmoe::emulator::bit_cast<float>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? std::fmin(x, 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
// The C library declares __expf and __logf for itself: only their names are replaced.
inline float fastmmoe_emulator_expf(float x) { return std::exp(x); }
inline float fastmmoe_emulator_logf(float x) { return std::log(x); }
#define __expf fastmmoe_emulator_expf
#define __logf fastmmoe_emulator_logf

template <typename T>
inline T __ldg(const T* address) {
  return *address;
}
template <typename T>
inline T __ldcs(const T* address) {
  return *address;
}
template <typename T>
inline void __stcs(T* address, typename fastmmoe::emulator::Same<T>::Type value) {
  *address = value;
}

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <typename T>
inline T atomicAdd(T* address, typename fastmmoe::emulator::Same<T>::Type value) {
  return fastmmoe::emulator::atomic_update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
inline T atomicSub(T* address, typename fastmmoe::emulator::Same<T>::Type value) {
  return fastmmoe::emulator::atomic_update(address, [=](T old) { return static_cast<T>(old - value); });
}
template <typename T>
inline T atomicMax(T* address, typename fastmmoe::emulator::Same<T>::Type value) {
  return fastmmoe::emulator::atomic_update(address, [=](T old) { return old < value ? value : old; });
}
template <typename T>
inline T atomicMin(T* address, typename fastmmoe::emulator::Same<T>::Type value) {
  return fastmmoe::emulator::atomic_update(address, [=](T old) { return value < old ? value : old; });
}
template <typename T>
inline T atomicAnd(T* address, typename fastmmoe::emulator::Same<T>::Type value) {
  return fastmmoe::emulator::atomic_update(address, [=](T old) { return static_cast<T>(old & value); });
}
template <typename T>
inline T atomicOr(T* address, typename fastmmoe::emulator::Same<T>::Type value) {
  return fastmmoe::emulator::atomic_update(address, [=](T old) { return static_cast<T>(old | value); });
}
template <typename T>
inline T atomicXor(T* address, typename fastmmoe::emulator::Same<T>::Type value) {
  return fastmmoe::emulator::atomic_update(address, [=](T old) { return static_cast<T>(old ^ value); });
}
template <typename T>
inline T atomicExch(T* address, typename fastmmoe::emulator::Same<T>::Type value) {
  return fastmmoe::emulator::atomic_update(address, [=](T) { return value; });
}
template <typename T>
inline T atomicCAS(T* address, typename fastmmoe::emulator::Same<T>::Type compare,
                   typename fastmmoe::emulator::Same<T>::Type value) {
  return fastmmoe::emulator::atomic_update(address, [=](T old) { return old == compare ? value : old; });
}
